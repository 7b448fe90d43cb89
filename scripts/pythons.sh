#!/bin/sh
# Print the path of an interpreter of a version, such as 3.12, from PATH or pyenv; fail if there is none: pythons.sh VERSION
set -eu
version=$1
for python in "$(command -v "python$version" || true)" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/"python$version"; do
    # A shim of pyenv is found and does not run.
    if [ -n "$python" ] && "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python"
        exit 0
    fi
done
exit 1
