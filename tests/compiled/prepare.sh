#!/bin/sh
# Get the real MindSpore, as the conformance tier has it, and build the shim with which its CPU wheel compiles for many devices.
set -eu
here=$(dirname "$0")
scripts=$here/../../scripts

found=$(sh "$here/../conformance/prepare.sh")
python=${found#*RESHARD_MINDSPORE_PYTHON=}
cache=${RESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reshard}
if ! command -v g++ >/dev/null; then  # if two runs start at once, one installs and the other waits
    { flock 8 && sh "$scripts/apt.sh" g++; } 8>"$cache/packages.lock" || { echo "test: no g++" >&2; exit 3; }
fi

libraries=$("$python" -c 'import importlib.util as u; print(u.find_spec("mindspore").submodule_search_locations[0] + "/lib")')
key=$({ cat "$here/shim.cc"; echo "$libraries"; } | cksum | cut -d ' ' -f 1)
shim=$cache/mindspore-shim-$key.so
if [ ! -e "$shim" ]; then
    # MindSpore is built with the older of g++'s two ABIs.
    g++ -shared -fPIC -D_GLIBCXX_USE_CXX11_ABI=0 -o "$shim.$$" "$here/shim.cc" \
        -L"$libraries" -lmindspore_core -Wl,-rpath,"$libraries" >&2
    mv "$shim.$$" "$shim"
fi
echo "RESHARD_MINDSPORE_PYTHON=$python"
echo "RESHARD_MINDSPORE_SHIM=$shim"
