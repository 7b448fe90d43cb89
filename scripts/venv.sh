#!/bin/sh
# Make a virtual environment where there is none that works: venv.sh PYTHON OLDEST FOLDER
set -eu
python=$1 oldest=$2 folder=$3

if "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi
if ! version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
    echo "setup: '$python' does not run; install Python $oldest or newer, or name one with PYTHON=" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < tuple(map(int, sys.argv[1].split("."))))' "$oldest"; then
    echo "setup: '$python' is Python $version; $oldest or newer is needed, name one with PYTHON=" >&2
    exit 1
fi
# Debian's Python comes without what makes environments.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    sh "$(dirname "$0")/apt.sh" "python$version-venv"
fi
mkdir -p "$(dirname "$folder")"
"$python" -m venv --clear "$folder"
