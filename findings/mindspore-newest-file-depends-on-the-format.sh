#!/bin/sh
# MindSpore 2.10.0, 2026-11-28
#
# If a rank's folder holds several steps, `transform_checkpoints` takes the last name in lexicographic order for .ckpt, and the
# highest step number for safetensors. The same training run, saved in the other format, is transformed from another step.
#
# A good guess: both formats take the newest step, or both take the last name. With .ckpt, step 9 wins over step 10.
set -eu
. "$(dirname "$0")/lib/environment.sh"
install mindspore==2.10.0 numpy==1.26.4 safetensors==0.7.0

observe <<'END'
import mindspore
import numpy as np
from checkpoints import load, save, strategy

strategy("source.ckpt", weight=([1], [-1], 0, 0))
strategy("target.ckpt", weight=([2], [-1], 0, 0))
for kind in ("ckpt", "safetensors"):
    for epoch in (9, 10):
        save(f"{kind}/rank_0/net-{epoch}_1.{kind}", weight=np.full(2, epoch, np.float32))
    mindspore.transform_checkpoints(kind, f"{kind}_made", "net_", "source.ckpt", "target.ckpt", output_format=kind)
    print(kind, load(f"{kind}_made/rank_0/net_0.{kind}"))
END

expect <<'END'
ckpt {'weight': [9.0, 9.0]}
safetensors {'weight': [10.0, 10.0]}
END
