"""Convert sharded checkpoints from M ranks to N ranks, to another parallel layout, or to another format.

```python
import reshard

request = reshard.Request(source="src_checkpoints", source_strategy="src_strategy.ckpt",
                          target="dst_checkpoints", target_strategy="dst_strategy.ckpt")
print(reshard.plan_transform(request).memory_bytes)
reshard.transform_checkpoint(request)
for name, array in reshard.load("src_checkpoints", "src_strategy.ckpt", "dst_strategy.ckpt", rank=3).items(): ...
```

Names are imported on first use, so that a program that only needs the spec or the errors does not import the converter.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reshard.version import __version__

if TYPE_CHECKING:
    from reshard.checkpoint.manifest import Manifest
    from reshard.errors import ReshardError
    from reshard.online.load import LoadOptions, iter_tensors, load
    from reshard.online.network import load_into_net
    from reshard.progress import Cancellation, Progress
    from reshard.spec.keys import Encryption, Key
    from reshard.spec.request import Options, Request
    from reshard.spec.rules import CastRule, PadRule, RenameRule
    from reshard.spec.storage_options import RequestStorageOptions, StorageOptions
    from reshard.transform.complete import commit_checkpoint
    from reshard.transform.diff import DiffResult, diff_checkpoints
    from reshard.transform.plan import PlanResult, plan_transform
    from reshard.transform.run import Result, transform_checkpoint
    from reshard.transform.verify import VerifyResult, verify_checkpoint

_HOME = {
    "Cancellation": "reshard.progress",
    "CastRule": "reshard.spec.rules",
    "DiffResult": "reshard.transform.diff",
    "Encryption": "reshard.spec.keys",
    "Key": "reshard.spec.keys",
    "LoadOptions": "reshard.online.load",
    "Manifest": "reshard.checkpoint.manifest",
    "Options": "reshard.spec.request",
    "PadRule": "reshard.spec.rules",
    "PlanResult": "reshard.transform.plan",
    "Progress": "reshard.progress",
    "RenameRule": "reshard.spec.rules",
    "Request": "reshard.spec.request",
    "RequestStorageOptions": "reshard.spec.storage_options",
    "ReshardError": "reshard.errors",
    "Result": "reshard.transform.run",
    "StorageOptions": "reshard.spec.storage_options",
    "VerifyResult": "reshard.transform.verify",
    "commit_checkpoint": "reshard.transform.complete",
    "diff_checkpoints": "reshard.transform.diff",
    "iter_tensors": "reshard.online.load",
    "load": "reshard.online.load",
    "load_into_net": "reshard.online.network",
    "plan_transform": "reshard.transform.plan",
    "transform_checkpoint": "reshard.transform.run",
    "verify_checkpoint": "reshard.transform.verify",
}

__all__ = [
    "Cancellation",
    "CastRule",
    "DiffResult",
    "Encryption",
    "Key",
    "LoadOptions",
    "Manifest",
    "Options",
    "PadRule",
    "PlanResult",
    "Progress",
    "RenameRule",
    "Request",
    "RequestStorageOptions",
    "ReshardError",
    "Result",
    "StorageOptions",
    "VerifyResult",
    "__version__",
    "commit_checkpoint",
    "diff_checkpoints",
    "iter_tensors",
    "load",
    "load_into_net",
    "plan_transform",
    "transform_checkpoint",
    "verify_checkpoint",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the type depends on the name
    """Import a public name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
