#!/bin/sh
# MindSpore 2.10.0, 2026-11-28
#
# `transform_checkpoints` without a source strategy takes the file of rank 0 for the whole checkpoint, even if the folder holds
# several ranks. It cuts rank 0's slice again and reports success; the other ranks are lost.
#
# A good guess: `src_strategy_file=None` means one complete file, so eight rank folders without a strategy are an error.
set -eu
. "$(dirname "$0")/lib/environment.sh"
install mindspore==2.10.0 numpy==1.26.4 safetensors==0.7.0

observe <<'END'
import mindspore
import numpy as np
from checkpoints import load, save, strategy

for rank in range(4):  # rank r holds row r of four
    save(f"source/rank_{rank}/net_{rank}.ckpt", weight=np.full((2, 2), rank, np.float32))
strategy("target.ckpt", weight=([2], [0, -1], 0, 0))
mindspore.transform_checkpoints("source", "made", "net_", None, "target.ckpt")
for rank in range(2):
    print(load(f"made/rank_{rank}/net_{rank}.ckpt"))
END

expect <<'END'
{'weight': [[0.0, 0.0]]}
{'weight': [[0.0, 0.0]]}
END
