#!/bin/sh
# Build the Go programs that the tests need, once for each version of them: build.sh PROGRAM...
#
# A program is a `tool` of one of the Go modules here. Kubernetes has a module for each tested minor version: K8S selects one.
# Default: the newest. Prints the folders that hold the programs, as in PATH. A program that KUBEBUILDER_ASSETS holds is taken
# from there.
set -eu
cd "$(dirname "$0")"
cache=${RESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reshard}/programs

modules=$(printf '%s\n' */go.mod | sort -rV)  # the newest Kubernetes first
if [ -n "${K8S:-}" ]; then
    [ -d "kubernetes-$K8S" ] || { echo "tools: K8S=$K8S is not one of the tested versions:" kubernetes-* >&2; exit 2; }
    modules="kubernetes-$K8S/go.mod $modules"
fi

# package_of PROGRAM MODULE: its package, and nothing if the module has it not
package_of() {
    sed -nE "s|^(tool)?[[:space:]]+([^ ]*/$1)\$|\2|p" "$2"
}

# module_of PROGRAM: the first module that has it
module_of() {
    for module in $modules; do
        [ -z "$(package_of "$1" "$module")" ] || { echo "$module"; return; }
    done
    echo "tools: no module here has the program '$1'" >&2
    exit 2
}

# The versions that programs report, and that others rely on: kubectl its skew, helm which charts it accepts.
flags() {
    kubernetes=$(sed -nE 's|^[[:space:]]+k8s.io/kubernetes (v[^ ]+).*|\1|p' "$1")
    helm=$(sed -nE 's|^[[:space:]]+helm.sh/helm/v3 (v[^ ]+).*|\1|p' "$1")
    [ -n "$kubernetes" ] || return 0
    minor=$(echo "$kubernetes" | cut -d . -f 2)
    echo "-X k8s.io/component-base/version.gitVersion=$kubernetes -X k8s.io/component-base/version.gitMajor=1" \
        "-X k8s.io/component-base/version.gitMinor=$minor -X helm.sh/helm/v3/internal/version.version=$helm" \
        "-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=$minor -X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=$minor"
}

# build MODULE PROGRAM...: build those that the cache lacks, all at once, so that no core waits for a linker; print the folder
build() {
    module=$1
    shift
    folder=$cache/$(cat build.sh "$module" "${module%.mod}.sum" | sha256sum | cut -c 1-16)
    mkdir -p "$folder"
    # Of two runs at once, one builds and the other waits.
    exec 9>"$folder/lock"
    flock 9
    packages=''
    for program in "$@"; do
        [ -x "$folder/$program" ] || packages="$packages $(package_of "$program" "$module")"
    done
    if [ -n "$packages" ]; then
        echo "tools: building$packages, once for this version" >&2
        made=$(mktemp -d "$folder/.making-XXXXXX")
        # shellcheck disable=SC2086  # a list of packages
        # Without inlining and debug data, and with more memory for the compiler, a build takes half the time. Tests wait for
        # pods more than for these programs.
        CGO_ENABLED=0 GOGC=400 go -C "${module%/*}" build -trimpath -gcflags='all=-dwarf=false -l' \
            -ldflags "-s -w $(flags "$module")" -o "$made" $packages >&2
        mv "$made"/* "$folder"
        rmdir "$made"
    fi
    echo "$folder"
}

folders='' chosen=''
for program in "$@"; do
    if [ -x "${KUBEBUILDER_ASSETS:-}/$program" ]; then
        folders=$KUBEBUILDER_ASSETS
    else
        module=$(module_of "$program")
        chosen="$chosen$module $program
"
    fi
done
for module in $(printf %s "$chosen" | cut -d ' ' -f 1 | sort -u); do
    # shellcheck disable=SC2046  # a list of programs
    folder=$(build "$module" $(printf %s "$chosen" | sed -n "s|^$module ||p"))
    folders=$folders${folders:+:}$folder
done
echo "$folders"
