#!/bin/sh
# MindSpore 2.10.0, 2026-11-28
#
# `save_checkpoint` writes complex parameters into a .ckpt file without a warning. `load_checkpoint` refuses the whole file, so the
# other parameters in it cannot be loaded either.
#
# A good guess: what save_checkpoint accepts, load_checkpoint of the same version reads.
set -eu
. "$(dirname "$0")/lib/environment.sh"
install mindspore==2.10.0 numpy==1.26.4 safetensors==0.7.0

observe <<'END'
import numpy as np
from checkpoints import load, save

save("saved/real.ckpt", weight=np.ones(2, np.float32))
print(load("saved/real.ckpt"))
save("saved/both.ckpt", weight=np.ones(2, np.float32), filter=np.ones(2, np.complex64))
try:
    print(load("saved/both.ckpt"))
except ValueError as error:
    print("ValueError:", str(error).splitlines()[0])
END

expect <<'END'
{'weight': [1.0, 1.0]}
ValueError: 'Complex64'
END
