#!/bin/sh
# MindSpore 2.10.0, 2026-11-28
#
# A strategy for inference does not name the optimizer's moments. `transform_checkpoints` to such a strategy neither leaves them out
# nor merges them: each target rank gets one source rank's slice under the full name.
#
# A good guess: a parameter that only the source's strategy names is dropped, or written whole, since its layout is known.
set -eu
. "$(dirname "$0")/lib/environment.sh"
install mindspore==2.10.0 numpy==1.26.4 safetensors==0.7.0

observe <<'END'
import mindspore
import numpy as np
from checkpoints import load, save, strategy

rows = ([4], [0, -1], 0, 0)
strategy("training.ckpt", weight=rows, moment1__weight=rows)
strategy("inference.ckpt", weight=([2], [0, -1], 0, 0))
for rank in range(4):
    save(f"source/rank_{rank}/net_{rank}.ckpt", weight=np.full((1, 2), rank, np.float32), moment1__weight=np.full((1, 2), rank, np.float32))
mindspore.transform_checkpoints("source", "made", "net_", "training.ckpt", "inference.ckpt")
for rank in range(2):
    print(load(f"made/rank_{rank}/net_{rank}.ckpt"))
END

expect <<'END'
{'weight': [[0.0, 0.0], [1.0, 1.0]], 'moment1.weight': [[0.0, 0.0]]}
{'weight': [[2.0, 2.0], [3.0, 3.0]], 'moment1.weight': [[1.0, 1.0]]}
END
