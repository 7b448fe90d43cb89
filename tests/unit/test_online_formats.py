"""Online load of every format, as numpy arrays and torch tensors: each rank has the rows that numpy cuts."""

from __future__ import annotations

import json
import sys
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import rawfiles
import torch_files
from effort import examples
from hypothesis import given
from hypothesis import strategies as st
from rawfiles import same
from torch_checkpoints import transform
from torch_files import DATA, sha256_of

import reshard
from reshard.checkpoint.dtypes import BY_TORCH_NAME, DTYPES
from reshard.errors import RequestError, UsageError

if TYPE_CHECKING:
    import thin_s3

RANKS = 3
WHOLE = {
    "uneven": np.arange(40, dtype=np.float32).reshape(8, 5),
    "even": np.arange(36, dtype=np.int64).reshape(6, 2, 3),
    "short": np.arange(4, dtype=ml_dtypes.bfloat16).reshape(2, 2),
    "scalar": np.array(1.5, np.float64),
}
# Options that write a checkpoint of each format with ranks of its own.
WRITTEN = {
    "ckpt": {"format": "Ckpt", "output": "PerRank"},
    "safetensors": {"format": "Safetensors", "output": "PerRank"},
    "unified": {"output": "Unified", "max_file_size_bytes": 1024},
    "huggingface": {"format": "HuggingFace", "max_file_size_bytes": 1024},
    "torch-dcp": {"format": "TorchDcp", "target_ranks": 4},
    "torch-safetensors": {"format": "TorchSafetensors", "target_ranks": 4},
}


def rows(whole: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """What FSDP gives a rank: the first ranks have equal numbers of rows, and the last ones what is left."""
    step = ceil(len(whole) / ranks) if whole.ndim else 0
    return whole[rank * step : (rank + 1) * step] if whole.ndim else whole


def check(found: dict[str, np.ndarray], rank: int, ranks: int, whole: dict[str, np.ndarray] = WHOLE) -> None:
    assert same(found, {name: rows(array, rank, ranks) for name, array in whole.items()})
    assert all(array.flags.writeable and array.flags.c_contiguous for array in found.values())


@pytest.fixture(scope="module", params=[*WRITTEN, "torch-save"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made")
    folder = tmp_path_factory.mktemp("source") / "source"
    if request.param == "torch-save":
        whole = WHOLE["uneven"]
        saved = b"\x80\x02}" + torch_files.text("uneven") + torch_files.tensor(whole.shape, (5, 1), count=40) + b"s."
        folder.mkdir()
        (folder / "model.pt").write_bytes(torch_files.archive(saved, {"data/0": whole.tobytes()}))
        return folder
    (made / "net.safetensors").write_bytes(rawfiles.safetensors(WHOLE))
    return transform(made, folder, **WRITTEN[request.param])


def content_of(source: Path) -> dict[str, np.ndarray]:
    return {"uneven": WHOLE["uneven"]} if (source / "model.pt").exists() else WHOLE


@pytest.mark.parametrize("ranks", [1, 2, RANKS, 7])
def test_a_rank_has_its_rows(source: Path, ranks: int) -> None:
    for rank in range(ranks):
        check(reshard.load(str(source), target_ranks=ranks, rank=rank), rank, ranks, content_of(source))


def test_an_index_contains_the_number_of_ranks(source: Path, tmp_path: Path) -> None:
    index = str(transform(source, tmp_path / "index", output="Index", target_ranks=RANKS))
    for rank in range(RANKS):
        check(reshard.load(str(source), index=index, rank=rank, verification="Full"), rank, RANKS, content_of(source))
    with pytest.raises(RequestError, match="NoSuchRank"):
        reshard.load(str(source), index=index, rank=RANKS, verification="Full")
    with pytest.raises(UsageError, match="target_ranks: the index already defines it"):
        reshard.load(str(source), index=index, rank=0, target_ranks=2)


def test_a_bucket_gives_the_same(source: Path, server: thin_s3.ThinServer) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            server.put("bucket", f"source/{path.relative_to(source)}", path.read_bytes())
    url = "s3://bucket/source"
    reshard.transform_checkpoint(
        reshard.Request(url, "s3://bucket/index", options=reshard.Options(output="Index", target_ranks=RANKS))
    )
    for rank in (0, RANKS - 1):
        check(reshard.load(url, target_ranks=RANKS, rank=rank), rank, RANKS, content_of(source))
        check(reshard.load(url, index="s3://bucket/index", rank=rank), rank, RANKS, content_of(source))


def test_fetch_by_an_index_of_ranks(source: Path, tmp_path: Path) -> None:
    index = str(transform(source, tmp_path / "index", output="Index", target_ranks=RANKS))
    options = reshard.Options(only_ranks="1", verification="Full")
    reshard.transform_checkpoint(reshard.Request(str(source), str(tmp_path / "fetched"), index=index, options=options))
    (path,) = (tmp_path / "fetched" / "rank_1").iterdir()
    found = rawfiles.read(path.suffix[1:], path.read_bytes())
    expected = {name: rows(whole, 1, RANKS) for name, whole in content_of(source).items()}
    assert {name: found[name].tobytes() for name in found} == {n: array.tobytes() for n, array in expected.items()}


@examples(60)
@given(st.lists(st.integers(0, 9), max_size=3), st.integers(1, 12), st.sampled_from(["ckpt", "safetensors"]))
def test_every_shape_is_cut_as_numpy_cuts_it(shape: list[int], ranks: int, kind: str) -> None:
    whole = {"w": np.arange(np.prod(shape, dtype=int), dtype=np.uint16).reshape(shape)}
    with TemporaryDirectory() as folder:
        (Path(folder) / f"net.{kind}").write_bytes(rawfiles.write(kind, whole))
        for rank in range(ranks):
            check(reshard.load(folder, target_ranks=ranks, rank=rank), rank, ranks, whole)


RECORDED = [
    *sorted(path.parent for path in DATA.parent.rglob("expected.json") if path.parent.name not in {"dtensors", "files"}),
    *sorted(path for path in (DATA / "files").glob("*.pt") if path.name in {"shared.pt", "types.pt"}),
]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(DATA.parent)))
def test_recorded_checkpoints_of_other_tools(path: Path) -> None:
    folder = path if path.is_dir() else path.parent
    expected = json.loads((folder / "expected.json").read_text())
    expected = expected if path.is_dir() else expected[path.name]
    without = tuple(
        name for name, each in expected.items() if (BY_TORCH_NAME.get(each["dtype"]) or DTYPES[each["dtype"]]).array is None
    )
    how = {"exclude": without, "replicas": "LowestRank"}  # one has a value that differs between ranks
    parts = [reshard.load(str(path), target_ranks=RANKS, rank=rank, **how) for rank in range(RANKS)]
    assert parts[0].keys() == expected.keys() - {*without}
    for name, array in parts[0].items():
        shape = expected[name]["shape"]
        assert [list(part[name].shape) for part in parts] == [list(rows(np.empty(shape), r, RANKS).shape) for r in range(RANKS)]
        whole = np.concatenate([part[name] for part in parts]) if array.ndim else array
        assert sha256_of(whole.tobytes()) == expected[name]["sha256"]


class FakeTorch(SimpleNamespace):
    """The functions of torch that a load uses, on numpy arrays."""

    __version__ = "2.4.1"

    @staticmethod
    def frombuffer(content: np.ndarray, *, dtype: Any) -> np.ndarray:
        assert content.size  # torch refuses empty buffers
        return np.frombuffer(content, dtype)

    @staticmethod
    def empty(shape: tuple[int, ...], *, dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)


@pytest.fixture
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {name: np.dtype(name) for name in ("float32", "float64", "int64", "uint8")}
    monkeypatch.setitem(sys.modules, "torch", FakeTorch(bfloat16=np.dtype(ml_dtypes.bfloat16), **kinds))


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize("ranks", [1, RANKS])
def test_torch_gets_the_types_and_shapes_of_the_checkpoint(source: Path, ranks: int) -> None:
    for rank in range(ranks):
        found = reshard.load(str(source), target_ranks=ranks, rank=rank, framework="torch")
        check(found, rank, ranks, content_of(source))


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(
    ("dtype", "content", "said"),
    [
        ("F8_E8M0", b"ab", r"torch \(2\.4\.1\) has no type float8_e8m0fnu; install a newer version, load numpy arrays with"),
        ("F6_E2M3", b"abc", "torch has no type for float6_e2m3fn_x4; load numpy arrays"),
    ],
)
def test_a_type_that_torch_lacks_is_refused_by_name_before_the_first_tensor(
    dtype: str, content: bytes, said: str, tmp_path: Path
) -> None:
    shape = (4,) if dtype == "F6_E2M3" else (2,)
    tensors = {"a": ("U8", (1,), b"1"), "odd": (dtype, shape, content)}
    (tmp_path / "net.safetensors").write_bytes(torch_files.safetensors(tensors))
    with pytest.raises(RequestError, match=f"UnknownType: parameter odd: .*{said}") as caught:
        reshard.iter_tensors(str(tmp_path), framework="torch")
    assert caught.value.fix.endswith("exclude the parameter with exclude=('odd',)")
    assert reshard.load(str(tmp_path), framework="torch", exclude=("odd",)).keys() == {"a"}
    assert reshard.load(str(tmp_path)).keys() == {"a", "odd"}


@pytest.mark.usefixtures("_torch")
def test_text_is_refused_for_torch(tmp_path: Path) -> None:
    (tmp_path / "net.ckpt").write_bytes(rawfiles.message("t", [0], "str", "x".encode("utf-32-le")))
    with pytest.raises(RequestError, match=r"parameter t: torch has no type for str; load numpy arrays"):
        reshard.load(str(tmp_path), framework="torch")


def test_torch_that_is_not_installed_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(RequestError, match=r"PackageMissing: torch: .*install PyTorch, or load numpy arrays"):
        reshard.load(str(source), framework="torch")


def test_another_framework_is_refused(source: Path) -> None:
    with pytest.raises(UsageError, match="InvalidOption: framework: 'jax' is not supported; use numpy or torch"):
        reshard.load(str(source), framework="jax")
