#!/bin/sh
# Run the tests' cluster with all that it needs: cluster.sh PYTHON up|run [OPTION...] [-- COMMAND...]
set -eu
. "$(dirname "$0")/exported.sh"
python=$1
shift
found=$(sh tests/cluster/prepare.sh)
exported "$found"
PYTHONPATH="$PWD/tests/support" exec "$python" -m cluster "$@"
