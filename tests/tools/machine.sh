# shellcheck shell=sh
# For a prepare.sh to source: whether this machine can have a Kubernetes cluster, and getting what it needs for one.
tools=$(dirname "$0")/../tools

leave_out() {
    echo "test: no Kubernetes: $1" >&2
    exit 3
}

# packages PACKAGE...: install those of Debian's that are not here
packages() {
    missing=''
    for package in "$@"; do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || true
        [ "$state" = installed ] || missing="$missing $package"
    done
    [ -z "$missing" ] && return
    # shellcheck disable=SC2086  # a list of packages
    sh "$tools/../../scripts/apt.sh" $missing || leave_out "these packages cannot be installed:$missing"
}

# programs PROGRAM...: build those that are not in the cache, and print where they are
programs() {
    folders=$(sh "$tools/build.sh" "$@") || leave_out "its programs cannot be built"
    echo "RESHARD_PROGRAMS=$folders"
}

[ "$(uname -s)" = Linux ] || leave_out "it needs Linux, this is $(uname -s)"
[ "$(id -u)" -eq 0 ] || leave_out "it needs root, for a network and mounts of its own"
command -v go >/dev/null || leave_out "it is built with Go, which is not here"
unshare --net --mount --pid --fork true 2>/dev/null || leave_out "this machine does not let root make namespaces"

# Of two runs at once, one installs and the other waits.
cache=${RESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reshard}
mkdir -p "$cache"
exec 8>"$cache/packages.lock"
flock 8
