#!/bin/sh
# Get mpirun, and the real MindSpore, in an environment of its own: its numpy and safetensors are older than ours.
set -eu
here=$(dirname "$0")
. "$here/../tools/environment.sh"

leave_out() {
    echo "test: no MindSpore: $1" >&2
    exit 3
}

mkdir -p "$cache"
if ! command -v mpirun >/dev/null; then  # if two runs start at once, one installs and the other waits
    { flock 8 && sh "$scripts/apt.sh" openmpi-bin; } 8>"$cache/packages.lock" ||
        echo "test: no mpirun, so workflows are skipped" >&2
fi

if [ -n "${RESHARD_MINDSPORE_PYTHON:-}" ]; then
    echo "RESHARD_MINDSPORE_PYTHON=$RESHARD_MINDSPORE_PYTHON"
    exit 0
fi
case $(uname -s)-$(uname -m) in
    Linux-x86_64 | Linux-aarch64) ;;
    *) leave_out "it is published for Linux on x86_64 and aarch64 only, this is $(uname -s) on $(uname -m)" ;;
esac

python=''
for candidate in "${PYTHON:-python3}" python3 python3.12 python3.11 python3.10 python3.9; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || leave_out "it is published for Python 3.9 to 3.12, and none of them is here"

# A C++ library that Debian's smallest systems lack.
if ! "$python" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null; then
    sh "$scripts/apt.sh" libgomp1 >&2 || leave_out "it needs the library libgomp.so.1"
fi
environment mindspore RESHARD_MINDSPORE_PYTHON "800 MB" "$python" 3.9
