"""Half of a checkpoint is never one that other frameworks load: they do not notice gaps, and mix old files with new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch_files

from reshard.errors import ReshardError
from reshard.spec.request import Options, Request
from reshard.storage.local import LocalStore
from reshard.target.task import TaskState
from reshard.transform import run
from reshard.transform.run import transform_checkpoint
from reshard.transform.verify import verify_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model.safetensors.index.json"
SOURCE = torch_files.DATA / "fsdp2"
SMALL_FILES = {"max_file_size_bytes": 1024}


def transform(source: Path, target: Path, **options: Any) -> None:
    transform_checkpoint(Request(source, target, options=Options(**options)), workers=1)


@pytest.mark.parametrize(
    ("options", "document"),
    [
        ({"format": "TorchDcp", "target_ranks": 3}, ".metadata"),
        ({"format": "TorchSafetensors", "target_ranks": 3}, None),
        ({"format": "HuggingFace", **SMALL_FILES}, INDEX),
    ],
)
def test_some_ranks_are_no_checkpoint_that_can_be_read(options: dict[str, Any], document: str | None, tmp_path: Path) -> None:
    some = tmp_path / "some"
    transform(SOURCE, some, only_ranks="0", **options)
    assert document is None or not (some / document).exists()
    verify_checkpoint(str(some))
    with pytest.raises(ReshardError, match=r"FileMissing.*only 1 of [0-9]+ files"):
        transform(some, tmp_path / "again")
    transform(SOURCE, some, **options)
    assert document is None or (some / document).exists()
    verify_checkpoint(str(some))
    transform(some, tmp_path / "again", verification="Full")


@pytest.mark.parametrize("renames", [True, False])
@pytest.mark.parametrize(
    ("options", "document"),
    [({"format": "TorchDcp", "target_ranks": 2}, ".metadata"), ({"format": "HuggingFace", **SMALL_FILES}, INDEX)],
)
def test_old_documents_do_not_describe_new_files(
    options: dict[str, Any], document: str, renames: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement that ends between its files leaves a target that no framework loads."""
    transform(SOURCE, tmp_path, **options)
    monkeypatch.setattr(LocalStore, "renames", property(lambda _: renames, lambda _, __: None), raising=False)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((TaskState, "publish") if renames else (run, "write_ranks")), stop)
        with pytest.raises(KeyboardInterrupt):
            transform(SOURCE, tmp_path, **options, exclude=("optim.*",), overwrite="Replace")
    assert not (tmp_path / document).exists()
    transform(SOURCE, tmp_path, **options, exclude=("optim.*",), overwrite="Replace")
    verify_checkpoint(str(tmp_path))
