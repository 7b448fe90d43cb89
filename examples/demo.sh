#!/bin/sh
# What `make demo` shows: a checkpoint of 8 ranks, recorded from the real MindSpore, becomes one of 4 and one of 2.
set -eu
cd "$(dirname "$0")/.."
corpus=tests/conformance/corpus
results=build/demo
rm -rf "$results"
mkdir -p "$results"

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

say reshard strategy show "$corpus/src_strategy.ckpt"
say reshard run examples/retrain-on-4.yaml --volume checkpoints="$corpus" --volume results="$results"
say reshard verify "$results/dst_checkpoints_4"
say reshard run examples/serve-on-2.yaml --volume checkpoints="$corpus" --volume results="$results"
say reshard inspect "$results/dst_checkpoints_2"

cat <<END

The results are in $results/dst_checkpoints_4 (.ckpt, as MindSpore loads it) and $results/dst_checkpoints_2 (safetensors).
What to try next, with reshard in .venv/bin:
  .venv/bin/reshard plan --source $corpus/src_checkpoints --source-strategy $corpus/src_strategy.ckpt --target $results/whole
        what merging all ranks into one would read, write and take
  .venv/bin/reshard run examples/serve-on-2.yaml --volume checkpoints=$corpus --volume results=$results
        the same again: nothing is left to do
  .venv/bin/reshard transform --help
        for a checkpoint of your own
END
