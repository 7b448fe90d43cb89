#!/bin/sh
# Find the interpreters that the distributions are installed on: RESHARD_PYTHONS, separated by colons. Install the shells that completion
# is tested in. With CI=true, all of them are required.
set -eu
cd "$(dirname "$0")/../.."
found='' missing=''
for version in 3.11 3.12 3.13 3.14; do
    if python=$(sh scripts/pythons.sh "$version" || sh tests/packaging/debian_python.sh "$version"); then
        found="$found${found:+:}$python"
    else
        missing="$missing${missing:+, }Python $version"
    fi
done
shells=''
for shell in bash zsh fish; do
    command -v "$shell" >/dev/null || shells="$shells $shell"
done
# shellcheck disable=SC2086  # a list of packages
[ -z "$shells" ] || sh scripts/apt.sh $shells || missing="$missing${missing:+, }${shells# }"
if [ -n "$missing" ]; then
    echo "test: tier packaging: not available on this machine: $missing" >&2
    [ "${CI:-}" != true ] || exit 3
fi
echo "RESHARD_PYTHONS=$found"
