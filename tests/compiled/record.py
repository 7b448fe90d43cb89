"""Record the strategy files of tests/conformance/corpus: `python record.py FOLDER`, after `compiler.py FOLDER`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[1] / "conformance" / "corpus"
# From the corpus' file or folder to that of compiler.py.
RECORDED = {
    "src_strategy.ckpt": "document/src_strategy_small.ckpt",
    "dst_strategy_4.ckpt": "document/dst_strategy_small.ckpt",
    "dst_strategy_2.ckpt": "document/dst_strategy_2.ckpt",
    "training/src_strategy.ckpt": "document/src_strategy.ckpt",
    "training/dst_strategy.ckpt": "document/dst_strategy.ckpt",
    "training/predict_strategy.ckpt": "document/predict_strategy.ckpt",
    "training/src_pipeline_strategy/stage_0.ckpt": "document/src_pipeline_strategy/stage_0.ckpt",
    "training/src_pipeline_strategy/stage_1.ckpt": "document/src_pipeline_strategy/stage_1.ckpt",
    "experts/src_strategy/stage_0.ckpt": "experts/src.ckpt",
    "experts/dst_strategy.ckpt": "experts/dst.ckpt",
    "pipeline/src_strategy/stage_0.ckpt": "layers/src/stage_0.ckpt",
    "pipeline/src_strategy/stage_1.ckpt": "layers/src/stage_1.ckpt",
    "pipeline/dst_strategy.ckpt": "layers/dst.ckpt",
}

if __name__ == "__main__":
    for name, compiled in RECORDED.items():
        (CORPUS / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(sys.argv[1]) / compiled, CORPUS / name)
