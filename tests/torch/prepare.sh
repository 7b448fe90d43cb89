#!/bin/sh
# Get PyTorch with Megatron-core and transformers, in an environment of its own: the product depends on none of them.
set -eu
here=$(dirname "$0")
. "$here/../tools/environment.sh"

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

# Without compiled modules, which would take a tenth more of disk. PyTorch's libraries link those of CUDA, also on a CPU.
environment torch RESHARD_TORCH_PYTHON "5.5 GB" "${PYTHON:-python3}" 3.11 --no-compile --no-cache-dir --no-deps
