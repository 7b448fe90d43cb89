#!/bin/sh
# Find the interpreters that the distributions are installed on: RESHARD_PYTHONS, separated by colons. Install the shells that completion
# is tested in.
set -eu
cd "$(dirname "$0")/../.."
found='' missing=''
for version in 3.11 3.12 3.13 3.14; do
    if python=$(sh scripts/pythons.sh "$version" || sh tests/packaging/debian_python.sh "$version"); then
        found="$found${found:+:}$python"
    else
        missing="$missing $version"
    fi
done
[ -z "$missing" ] || echo "test: tier packaging leaves out Python$missing: not available on this machine" >&2
shells=''
for shell in zsh fish; do
    command -v "$shell" >/dev/null || shells="$shells $shell"
done
# shellcheck disable=SC2086  # a list of packages
[ -z "$shells" ] || sh scripts/apt.sh $shells || echo "test: tier packaging goes without the completion of$shells" >&2
echo "RESHARD_PYTHONS=$found"
