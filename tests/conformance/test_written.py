"""Files that MindSpore saves, and our conversions as it reads them: all types and shapes, both formats, with and without CRC."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import contents
import pytest
import rawfiles

from reshard import Options, RenameRule, Request, transform_checkpoint
from reshard.checkpoint import ckpt_output
from reshard.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAIRS = [(source, target) for source in ("ckpt", "safetensors") for target in ("ckpt", "safetensors")]
FILES = [(source, target, name) for source, target in PAIRS for name in ("all", "all_crc")]


def copy(source: Path, folder: Path, kind: str, *, crc: bool = False, verification: Any = "Full") -> Path:
    """Convert one file to a format with the same tensors. The name states the CRC, if it has one."""
    prefix = f"copy{'_crc' if crc else ''}_"
    options = Options(format="Ckpt" if kind == "ckpt" else "Safetensors", file_prefix=prefix, crc=crc, verification=verification)
    transform_checkpoint(Request(str(source), str(folder), options=options))
    return folder / "rank_0" / f"{prefix}0.{kind}"


@dataclass(frozen=True)
class Copies:
    """MindSpore's files, ours, and their contents as MindSpore reads them."""

    samples: Path
    ours: dict[tuple[str, str, str], Path]
    loaded: dict[str, dict[str, list[Any]]]


@pytest.fixture(scope="module")
def copies(once: Callable[..., Path], oracle: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Copies:
    samples = once("samples")
    ours = {}
    for source, target, name in FILES:
        folder = tmp_path_factory.mktemp(f"{name}-{source}-{target}")
        # Full verification is a test of its own: it refuses CRCs that are wrong.
        made = copy(samples / f"{name}.{source}", folder, target, crc=name == "all_crc", verification="Sample")
        ours[source, target, name] = made
    empty = tmp_path_factory.mktemp("empty")
    ours["safetensors", "safetensors", "empty"] = copy(samples / "empty.safetensors", empty / "a", "safetensors")
    ours["safetensors", "ckpt", "empty"] = copy(samples / "empty.safetensors", empty / "b", "ckpt")
    text = tmp_path_factory.mktemp("text")
    ours["ckpt", "ckpt", "text"] = copy(samples / "text.ckpt", text / "a", "ckpt")
    ours["ckpt", "safetensors", "text"] = copy(samples / "text.ckpt", text / "b", "safetensors")
    # Named so that MindSpore checks no CRC: separate tests check files with a CRC.
    return Copies(samples, ours, oracle("load", *sorted(samples.glob("*.*")), *(p for k, p in ours.items() if k[2] != "all_crc")))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_mindspore_reads_everything_that_we_write(copies: Copies, source: str, target: str) -> None:
    made = copies.ours[source, target, "all"]
    found = copies.loaded[str(made)]
    assert len(found) == 42
    assert found == copies.loaded[str(copies.samples / f"all.{source}")]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_mindspore_accepts_the_crc_that_we_write(copies: Copies, oracle: Callable[..., Any], source: str, target: str) -> None:
    made = copies.ours[source, target, "all_crc"]
    assert b"crc_num" in made.read_bytes()
    assert oracle("load", made)[str(made)] == copies.loaded[str(copies.samples / f"all_crc.{source}")]


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_copied_file_equals_mindspores_bytes(copies: Copies, kind: str) -> None:
    ours, theirs = copies.ours[kind, kind, "all"].read_bytes(), (copies.samples / f"all.{kind}").read_bytes()
    assert ours == theirs if kind == "ckpt" else contents.same_safetensors(ours, theirs)


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_crc_written_by_mindspore_is_accepted(once: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    original = once("samples") / f"all_crc.{kind}"
    copy(original, tmp_path / "whole", kind)
    content = bytearray(original.read_bytes())
    content[-18] ^= 1  # in the last tensor; a .ckpt ends with 17 bytes of CRC
    damaged = tmp_path / f"damaged.{kind}"
    damaged.write_bytes(content)
    with pytest.raises(DataError, match="CrcMismatch"):
        copy(damaged, tmp_path / "damaged", kind)


def test_the_crc_of_a_ckpt_is_mindspores(copies: Copies) -> None:
    assert copies.ours["ckpt", "ckpt", "all_crc"].read_bytes() == (copies.samples / "all_crc.ckpt").read_bytes()


def test_text_is_kept(copies: Copies) -> None:
    original = (copies.samples / "text.ckpt").read_bytes()
    assert copies.ours["ckpt", "ckpt", "text"].read_bytes() == original
    found = rawfiles.read_safetensors(copies.ours["ckpt", "safetensors", "text"].read_bytes())
    assert found["text"].astype("<u4").tobytes().decode("utf-32-le") == "h\u00e9llo \U0001f600"


def test_a_tensor_without_elements_is_kept_if_the_format_supports_it(copies: Copies) -> None:
    ours = copies.loaded[str(copies.ours["safetensors", "safetensors", "empty"])]
    assert ours == copies.loaded[str(copies.samples / "empty.safetensors")]
    assert ours["empty"][:2] == ["Float32", [0, 3]]
    assert copies.loaded[str(copies.ours["safetensors", "ckpt", "empty"])] == ours


def test_a_large_parameter_is_saved_in_mindspores_pieces(
    copies: Copies, oracle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert oracle("limits") == ckpt_output.CHUNK_BYTES
    original = copies.samples / "pieces.ckpt"  # saved with pieces of 4 KiB
    pieces = [value.tag for value in rawfiles.Checkpoint.FromString(original.read_bytes()).value]
    assert pieces == ["before", "large", "large", "large", "large"]
    monkeypatch.setattr(ckpt_output, "CHUNK_BYTES", 4096)
    made = copy(original, tmp_path / "pieces", "ckpt")
    assert made.read_bytes() == original.read_bytes()
    monkeypatch.undo()
    joined = copy(original, tmp_path / "joined", "ckpt")
    assert oracle("load", made, joined) == {str(path): copies.loaded[str(original)] for path in (made, joined)}


def test_asynchronously_saved_files_are_read_exactly(
    once: Callable[..., Path], oracle: Callable[..., Any], tmp_path: Path
) -> None:
    original = once("rare") / "async.ckpt"
    pieces = [
        (value.tag, len(value.tensor.tensor_content)) for value in rawfiles.Checkpoint.FromString(original.read_bytes()).value
    ]
    assert pieces[:6] == [("rows", 8000)] * 3 + [("rows", 0)] * 3  # split by rows into as many as 4 KiB would need
    assert pieces[6:12] == [("row", 24000)] + [("row", 0)] * 5
    assert pieces[12:] == [("none", 0), ("nothing", 0), ("no columns", 0), ("scalar", 4)]
    made = [copy(original, tmp_path / kind, kind) for kind in ("ckpt", "safetensors")]
    loaded = oracle("load", original, *made)
    wanted, ckpt_file, safetensors_file = (loaded[str(path)] for path in (original, *made))
    assert wanted.pop("nothing")[1] == []  # a scalar, whatever is in it
    assert ckpt_file == wanted
    assert safetensors_file.pop("nothing")[:2] == ["Float32", [0]]
    assert safetensors_file == wanted


@pytest.mark.parametrize(("dtype", "safetensors"), [("Float8E4M3FN", "F8_E4M3"), ("Float8E5M2", "F8_E5M2"), ("Complex64", "C64")])
def test_a_file_that_mindspore_saves_and_cannot_load_is_rescued(
    once: Callable[..., Path], tmp_path: Path, dtype: str, safetensors: str
) -> None:
    made = copy(once("rare") / f"{dtype}.ckpt", tmp_path, "safetensors").read_bytes()
    assert contents.header(made)["w"]["dtype"] == safetensors
    assert contents.data(made) == bytes(range(1, 97))


@pytest.mark.parametrize("dtype", ["HiFloat8", "Complex128"])
def test_a_file_that_no_other_format_can_hold_stays_a_ckpt(once: Callable[..., Path], tmp_path: Path, dtype: str) -> None:
    original = once("rare") / f"{dtype}.ckpt"
    with pytest.raises(DataError, match=f"safetensors has no equivalent of the type {dtype}"):
        copy(original, tmp_path / "refused", "safetensors")
    assert copy(original, tmp_path / "copied", "ckpt").read_bytes() == original.read_bytes()


def test_mindspore_loads_conversions_of_files_that_it_refuses(oracle: Callable[..., Any], tmp_path: Path) -> None:
    order = {
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    alias = {"__metadata__": {"head": "embed"}, "embed": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    made = []
    for name, header, rename in (("order", order, ()), ("alias", alias, (RenameRule("head", name="embed"),))):
        text = json.dumps(header).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(8)))
        request = Request(str(tmp_path / f"{name}.safetensors"), str(tmp_path / name), options=Options(rename=rename))
        transform_checkpoint(request)
        made.append(tmp_path / name / "rank_0" / "checkpoint_0.safetensors")
    assert [set(found) for found in oracle("load", *made).values()] == [{"a", "b"}, {"head"}]
