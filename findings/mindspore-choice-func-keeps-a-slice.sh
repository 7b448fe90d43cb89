#!/bin/sh
# MindSpore 2.10.0, 2026-11-28
#
# `unified_safetensors(choice_func=...)` does not leave out the parameters that the function refuses. It writes rank 0's slice of
# each into hyper_param.safetensors, the file for parameters that are whole on every rank.
#
# A good guess: a refused parameter is in no file, as the function's documentation says, so whatever a unified checkpoint holds is
# whole. A program that reads all files of the folder loads a slice as if it were the parameter. The file does not mark it as a slice.
set -eu
. "$(dirname "$0")/lib/environment.sh"
install mindspore==2.10.0 numpy==1.26.4 safetensors==0.7.0

observe <<'END'
import mindspore
import numpy as np
from checkpoints import save, strategy
from safetensors.numpy import load_file

weight = np.arange(16, dtype=np.float32).reshape(8, 2)
strategy("strategy.ckpt", kept=([4], [0, -1], 0, 0), refused=([4], [0, -1], 0, 0))
for rank in range(4):
    rows = weight[2 * rank : 2 * rank + 2]
    save(f"source/rank_{rank}/net_{rank}.safetensors", kept=rows, refused=rows)
mindspore.unified_safetensors("source", "strategy.ckpt", "unified", choice_func=lambda name: name != "refused", max_process_num=1)
for name in ("part0", "hyper_param"):
    print(name, {tensor: array.shape for tensor, array in load_file(f"unified/{name}.safetensors").items()})
END

expect <<'END'
part0 {'kept': (8, 2)}
hyper_param {'refused': (2, 2)}
END
