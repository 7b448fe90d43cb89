#!/bin/sh
# Run the tests' cluster with all that it needs: cluster.sh PYTHON up|run [OPTION...] [-- COMMAND...]
set -eu
python=$1
shift
found=$(sh tests/cluster/prepare.sh)
while IFS= read -r line; do
    case $line in *=*) export "${line?}" ;; esac
done <<END
$found
END
PYTHONPATH="$PWD/tests/support" exec "$python" -m cluster "$@"
