#!/bin/sh
# Get PyTorch with Megatron-core and transformers, in an environment of its own: the product depends on none of them.
set -eu
here=$(dirname "$0")
scripts=$here/../../scripts
requirements=$here/requirements.txt

leave_out() {
    echo "test: no PyTorch: $1" >&2
    exit 3
}

if [ -n "${RESHARD_TORCH_PYTHON:-}" ]; then
    echo "RESHARD_TORCH_PYTHON=$RESHARD_TORCH_PYTHON"
    exit 0
fi
case $(uname -s)-$(uname -m) in
    Linux-x86_64) ;;
    *) leave_out "the versions of requirements.txt are those for Linux on x86_64, this is $(uname -s) on $(uname -m)" ;;
esac

cache=${RESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reshard}
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
key=$(cksum <"$requirements" | cut -d ' ' -f 1)
environment=$cache/torch-$version-$key
mkdir -p "$environment"

# If two runs start at once, one makes it and the other waits.
exec 9>"$environment.lock"
flock 9
if [ ! -e "$environment/.ready" ]; then
    echo "test: installing PyTorch into $environment (about 5.5 GB, once)" >&2
    sh "$scripts/venv.sh" "$python" 3.11 "$environment" >&2 || leave_out "its environment cannot be made"
    # Without compiled modules, which would take a tenth more of disk. PyTorch's libraries link those of CUDA, also on a CPU.
    "$environment/bin/python" -m pip install --quiet --no-compile --no-cache-dir --no-deps -r "$requirements" >&2 ||
        leave_out "it cannot be installed"
    "$environment/bin/python" -c 'import torch' >/dev/null || leave_out "it is installed but cannot be imported"
    touch "$environment/.ready"
fi
echo "RESHARD_TORCH_PYTHON=$environment/bin/python"
