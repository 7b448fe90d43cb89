#!/bin/sh
# Reshard a checkpoint of 8 ranks, which MindSpore saved, to 4 and to 2 ranks (`make demo`).
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

# The files that the documentation uses.
example=build/example
rm -rf "$example"
mkdir -p "$example"
cp -R "$corpus/src_checkpoints" "$corpus/src_strategy.ckpt" "$example"
cp "$corpus/dst_strategy_4.ckpt" "$example/dst_strategy.ckpt"
sed -e 's/claimName: results/claimName: checkpoints/' -e 's/dst_checkpoints_4/dst_checkpoints/' -e 's/dst_strategy_4/dst_strategy/' \
    -e '/^#/d' examples/retrain-on-4.yaml >"$example/transform.yaml"
cp -R tests/unit/data/torch/fsdp2 "$example/step_1000"
rm "$example/step_1000/expected.json"
python examples/llama.py "$example"

cat <<END

The results are in $results/dst_checkpoints_4 (.ckpt, as MindSpore loads it) and $results/dst_checkpoints_2 (safetensors).
Next steps:
  .venv/bin/reshard plan --source $corpus/src_checkpoints --source-strategy $corpus/src_strategy.ckpt --target $results/whole
        plan a merge of all ranks into one
  .venv/bin/reshard run examples/serve-on-2.yaml --volume checkpoints=$corpus --volume results=$results
        run the same transform again: nothing is left to do
  .venv/bin/reshard transform --help
        list the options for your own checkpoint
END
