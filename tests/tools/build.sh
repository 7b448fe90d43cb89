#!/bin/sh
# Build programs that the tests need, once for every version of them: build.sh PROGRAM...
#
# A program is a `tool` of one of the Go modules here. Prints one line: the folders with the programs, as in PATH. A program
# that KUBEBUILDER_ASSETS has is taken from there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${RESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reshard}/programs

# The versions that programs tell of themselves, which others believe: kubectl its skew, helm what a chart may use.
flags() {
    version=$(go list -f '{{.Module.Version}}' "$1")
    minor=${version#*.}
    minor=${minor%%.*}
    case $1 in
        k8s.io/kubernetes/*)
            at=k8s.io/component-base/version
            echo "-X $at.gitVersion=$version -X $at.gitMajor=1 -X $at.gitMinor=$minor" ;;
        helm.sh/*)
            kubernetes=$(cd "$here" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
            minor=${kubernetes#v1.}
            minor=${minor%%.*}
            echo "-X helm.sh/helm/v3/internal/version.version=$version" \
                "-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=$minor" \
                "-X helm.sh/helm/v3/pkg/lint/rules.k8sVersionMinor=$minor" ;;
    esac
}

build() {
    package=$(cd "$module" && go list tool | grep "/$program\$")
    echo "tools: building $program, once for its version" >&2
    (
        cd "$module"
        CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $(flags "$package")" -o "$folder/.$program.$$" "$package" >&2
    )
    mv "$folder/.$program.$$" "$folder/$program"
}

folders=''
for program in "$@"; do
    if [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$program" ]; then
        folder=$KUBEBUILDER_ASSETS
    else
        file=$(grep -El "^(tool)?[[:space:]]+[^ ]*/$program\$" "$here"/go.mod "$here"/*/go.mod) || {
            echo "tools: no module here has the program '$program'" >&2
            exit 2
        }
        module=$(dirname "$file")
        folder=$cache/$(cat "$0" "$module/go.mod" "$module/go.sum" | sha256sum | cut -c 1-16)
        mkdir -p "$folder"
        # Of two runs at once, one builds it and the other waits.
        exec 9>"$folder/$program.lock"
        flock 9
        [ -x "$folder/$program" ] || build
        exec 9>&-
    fi
    case ":$folders:" in
        *":$folder:"*) ;;
        *) folders=$folders${folders:+:}$folder ;;
    esac
done
echo "$folders"
