#!/bin/sh
# MindSpore 2.10.0 with safetensors 0.8.0 and 0.7.0, 2026-11-28
#
# MindSpore's safetensors transform passes views of numpy arrays to safetensors. Version 0.8.0 stores the memory behind a view, not its
# elements (safetensors#825), so a target that is cut by columns gets wrong values. Both packages install together, and no error is
# raised. Version 0.7.0 stores the right values.
#
# A good guess: MindSpore allows any newer safetensors, and the file has the right names, types and shapes.
set -eu
. "$(dirname "$0")/lib/environment.sh"

transform() {
    observe <<'END'
import mindspore
import numpy as np
import safetensors
from checkpoints import load, save, strategy

strategy("source.ckpt", weight=([1], [-1, -1], 0, 0))
strategy("columns.ckpt", weight=([2], [-1, 0], 0, 0))
save("source/rank_0/net_0.safetensors", weight=np.arange(8, dtype=np.float32).reshape(2, 4))
target = "made_" + safetensors.__version__
mindspore.transform_checkpoints("source", target, "net_", "source.ckpt", "columns.ckpt", output_format="safetensors")
print(safetensors.__version__, [load(f"{target}/rank_{rank}/net_{rank}.safetensors")["weight"] for rank in range(2)])
END
}

install mindspore==2.10.0 numpy==1.26.4 safetensors==0.8.0
transform
expect <<'END'
0.8.0 [[[0.0, 1.0], [2.0, 3.0]], [[2.0, 3.0], [4.0, 5.0]]]
END
install safetensors==0.7.0
transform
expect <<'END'
0.7.0 [[[0.0, 1.0], [4.0, 5.0]], [[2.0, 3.0], [6.0, 7.0]]]
END
