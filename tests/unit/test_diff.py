"""`reshard diff`: checkpoints of any layouts and formats are equal, or the parameters and elements that differ are named."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rawfiles
from torch_checkpoints import transform
from torch_files import DATA

from reshard.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import disk

FORMATS = ("ckpt", "safetensors", "torch-dcp", "torch-safetensors", "huggingface")


def diff(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the result of a comparison."""
    capsys.readouterr()
    code = main(["diff", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def written(made: disk.Checkpoint, target: Path, *options: str) -> Path:
    """A target in any format, of whole parameters if the format requires that."""
    arguments = made.arguments(target, *options)
    if "huggingface" in options:
        at = arguments.index("--target-strategy")
        del arguments[at : at + 2]
    assert main(arguments) == 0
    return target


@pytest.mark.parametrize("format_", FORMATS)
def test_a_source_and_its_target_are_equal(
    made: disk.Checkpoint, target: Path, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    written(made, target, "--format", format_)
    code, found = diff(capsys, made.source, target, "--strategy-a", made.source_strategy)
    assert (code, found["equal"], found["differences"], found["by_fingerprint"]) == (0, 4, [], 0)
    assert found["bytes_compared"] == sum(made.model.whole(tensor).nbytes for tensor in made.model.tensors)


@pytest.mark.parametrize("format_", ["Safetensors", "HuggingFace"])
def test_a_checkpoint_that_torch_wrote_equals_its_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    source = DATA / "fsdp2_tp"
    names = json.loads((source / "expected.json").read_text())
    transform(source, tmp_path, format=format_, **{} if format_ == "HuggingFace" else {"target_ranks": 1})
    code, found = diff(capsys, source, tmp_path)
    assert (code, found["equal"], found["by_fingerprint"]) == (0, len(names), 0)
    (path,) = (path for path in tmp_path.rglob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "reshard-manifest.json").unlink()  # it would show the change
    code, found = diff(capsys, source, tmp_path)
    (difference,) = found["differences"]
    assert (code, difference["elements"], difference["b"]["place"]["path"]) == (1, 1, str(path.relative_to(tmp_path)))
    assert difference["index"] == [length - 1 for length in names[difference["name"]]["shape"]]  # the last element of a tensor


def test_manifests_with_fingerprints_are_enough(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = written(made, tmp_path / "a"), written(made, tmp_path / "b", "--format", "torch-dcp")
    for path in second.glob("*.distcp"):
        path.unlink()
    code, found = diff(capsys, first, second)
    assert (code, found["equal"], found["by_fingerprint"], found["bytes_compared"]) == (0, 4, 4, 0)
    main(["diff", str(first), str(second)])
    assert "note: only the manifest was compared: files of" in capsys.readouterr().err
    assert main(["diff", str(first), str(second), "--read"]) == 66


@pytest.mark.parametrize("read", [(), ("--read",)])
@pytest.mark.parametrize("field", ["dtype", "fingerprint"])
def test_a_manifest_that_has_changed_is_refused(
    made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str], field: str, read: tuple[str, ...]
) -> None:
    first, second = written(made, tmp_path / "a"), written(made, tmp_path / "b")
    manifest = second / "reshard-manifest.json"
    changed = re.sub(rf'("{field}": ")[^"]+', rf"\g<1>{'Int8' if field == 'dtype' else '0' * 16}", manifest.read_text(), count=1)
    manifest.write_text(changed)
    refused(65, "ContentChanged", "diff", str(first), str(second), *read)


def test_different_parameters_are_found_by_fingerprints_and_by_reading(
    made: disk.Checkpoint, other: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = written(made, tmp_path / "a"), written(other, tmp_path / "b")
    code, found = diff(capsys, first, second)
    assert (code, {each["name"]: each["elements"] for each in found["differences"]}) == (1, dict.fromkeys("wmb") | {"step": None})
    code, found = diff(capsys, first, second, "--read")
    counts = {}
    for tensor in made.model.tensors:
        one, another = made.model.whole(tensor), other.model.whole(tensor)
        counts[tensor.name] = int((one.view(f"u{one.itemsize}") != another.view(f"u{one.itemsize}")).sum())
    assert (code, {each["name"]: each["elements"] for each in found["differences"]}) == (1, counts)


@pytest.mark.parametrize("format_", FORMATS)
def test_one_flipped_bit_is_located(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        written(made, folder, "--format", format_)
        (folder / "reshard-manifest.json").unlink()
    strategies = ("--strategy-a", made.target_strategy, "--strategy-b", made.target_strategy)
    how = strategies if format_ in {"ckpt", "safetensors"} else ()
    assert diff(capsys, first, second, *how)[0] == 0
    whole = format_ == "huggingface"
    content = (made.model.whole(made.model.tensors[0]) if whole else made.model.target(2)["w"]).tobytes()
    (path,) = (path for path in second.rglob("*") if path.is_file() and content in path.read_bytes())
    changed = bytearray(path.read_bytes())
    at = changed.index(content) + 4  # the second element
    changed[at + 3] ^= 64
    path.write_bytes(changed)
    code, found = diff(capsys, first, second, *how)
    (difference,) = found["differences"]
    assert (code, found["equal"], difference["name"], difference["difference"]) == (1, 3, "w", "Content")
    assert (difference["elements"], difference["index"]) == (1, [0, 1] if whole else [0, 9])
    place = {"path": str(path.relative_to(second)), "offset": at}
    assert difference["a"]["place"] == difference["b"]["place"] == place
    assert main(["diff", str(first), str(second), *map(str, how)]) == 1
    assert f"{place['path']}:{at}" in capsys.readouterr().out.replace("\n", "")


def test_other_types_shapes_and_names_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = np.arange(12, dtype=np.float32)
    for name, tensors in (
        ("a", {"same": content, "type": content, "shape": content, "old": content}),
        ("b", {"new": content, "shape": content.reshape(3, 4), "type": content.astype(np.float16), "same": content}),
    ):
        (tmp_path / f"{name}.safetensors").write_bytes(rawfiles.write("safetensors", tensors))
    code, found = diff(capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    kinds = {each["name"]: each["difference"] for each in found["differences"]}
    assert (code, found["equal"], kinds) == (1, 1, {"type": "Type", "shape": "Shape", "old": "OnlyInA", "new": "OnlyInB"})
    code, found = diff(capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--parameter", "sa*")
    assert (code, found["equal"], found["differences"]) == (0, 1, [])


def test_encrypted_files_are_compared_by_their_plaintext(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_bytes(os.urandom(32))
    for name in ("a", "b"):
        written(made, tmp_path / name, "--encryption-key-file", str(tmp_path / "key"))
    code, found = diff(capsys, tmp_path / "a", tmp_path / "b", "--read", "--decryption-key-file", tmp_path / "key")
    assert (code, found["equal"], found["by_fingerprint"]) == (0, 4, 0)


def test_memory_does_not_grow_with_the_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = np.zeros(64 << 20, np.uint8)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(rawfiles.write("safetensors", {"x": content, "y": content}))
        content[-1] = 1
    code, found = diff(capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--workers", "2")  # loads what it imports
    tracemalloc.start()
    code, found = diff(capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--workers", "2")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (code, [each["index"] for each in found["differences"]]) == (1, [[(64 << 20) - 1]] * 2)
    assert peak < 24 << 20


def test_errors_name_the_checkpoint(made: disk.Checkpoint, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert str(tmp_path / "none") in refused(66, "SourceMissing", "diff", str(tmp_path / "none"), str(made.source))


def test_names_that_no_checkpoint_has_are_refused(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = written(made, tmp_path / "a")
    for more in ((), ("--read",)):
        assert main(["diff", str(target), str(target), "--parameter", "typo*", *more]) == 66
        assert "ParameterMissing" in capsys.readouterr().err


def test_a_missing_strategy_is_missed_by_the_option_of_diff(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = written(made, tmp_path / "a")
    assert main(["diff", str(target), str(made.source)]) == 78
    said = capsys.readouterr().err
    assert str(made.source) in said
    assert "--strategy-b" in said
    assert "--source-strategy" not in said
