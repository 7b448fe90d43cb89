#!/bin/sh
# Find the interpreters that the distributions are installed on: RESHARD_PYTHONS, separated by colons.
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
[ -z "$missing" ] || echo "test: tier packaging goes without Python$missing, which this machine cannot have" >&2
echo "RESHARD_PYTHONS=$found"
