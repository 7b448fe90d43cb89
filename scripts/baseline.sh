#!/bin/sh
# Install another revision of the project, once for each commit: baseline.sh PYTHON REVISION
#
# Prints the path of its `reshard` command, for measurements of two builds in the same run.
set -eu
python=$1
commit=$(git rev-parse --verify --quiet "$2^{commit}") || {
    echo "baseline: '$2' is not a revision of this repository; fetch it first" >&2
    exit 2
}
folder=${RESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/reshard}/baseline-$commit
if [ ! -e "$folder/.ready" ]; then
    rm -rf "$folder"
    mkdir -p "$folder/tree"
    git archive "$commit" | tar -x -C "$folder/tree"
    sh "$(dirname "$0")/venv.sh" "$python" 3.11 "$folder/venv" >&2
    # Extras have had other names; pip passes over those that a revision does not define.
    "$folder/venv/bin/python" -m pip install --quiet -c "$folder/tree/constraints.txt" "$folder/tree[s3,crypto,converter]" >&2
    touch "$folder/.ready"
fi
echo "$folder/venv/bin/reshard"
