"""Files of replicas, whose content is equal: written in one pass, and each compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from traffic_cases import made

from reshard.errors import BugError
from reshard.spec.request import Options, Request
from reshard.storage.local.writer import LocalWriter
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    import disk

    from reshard.spec.request import Verification
    from reshard.transform.run import Result


def transformed(checkpoint: disk.Checkpoint, target: Path, verification: Verification) -> Result:
    before, after = str(checkpoint.source_strategy), str(checkpoint.target_strategy)
    return transform_checkpoint(
        Request(str(checkpoint.source), str(target), before, after, Options(verification=verification)), workers=2
    )


def damaging(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """Change the last byte of the finished file of a rank."""
    flush = LocalWriter.flush

    def flush_and_damage(writer: LocalWriter) -> str:
        found = flush(writer)
        path, file = Path(writer._path), Path(writer._temporary)  # noqa: SLF001 - the file that was just completed
        if path.suffix == ".safetensors" and path.parent.name == f"rank_{rank}":
            content = file.read_bytes()
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return found

    monkeypatch.setattr(LocalWriter, "flush", flush_and_damage)


def test_full_verification_reads_the_source_once_for_equal_files(tmp_path: Path) -> None:
    checkpoint = made(tmp_path, "replicas")
    results = {level: transformed(checkpoint, tmp_path / level, level) for level in ("None", "Full")}
    contents = [{path.read_bytes() for path in tmp_path.glob(f"Full/rank_[{ranks}]/*")} for ranks in ("0246", "1357")]
    assert list(map(len, contents)) == [1, 1]
    read = results["Full"].other_bytes_fetched - results["None"].other_bytes_fetched
    distinct, written = results["Full"].bytes_distinct, results["Full"].bytes_written
    assert written == pytest.approx(4 * distinct, rel=0.02)
    copies = 3 * distinct  # of replicas in the source, which are compared before the transform
    assert read < written + distinct + copies + (64 << 10)


@pytest.mark.parametrize("rank", [2, 7])
def test_an_equal_file_that_differs_is_kept_and_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    checkpoint = made(tmp_path, "replicas")
    damaging(monkeypatch, rank)
    with pytest.raises(BugError, match=f"rank_{rank}.*differs from the equal file of another rank"):
        transformed(checkpoint, tmp_path / "out", "Full")
    assert [path.parent.name for path in tmp_path.glob("out/.reshard/*/rejected/*/*")] == [f"rank_{rank}"]
    assert f"rank_{rank}.json" not in {path.name for path in tmp_path.glob("out/.reshard/*/records/*")}
    monkeypatch.undo()
    assert transformed(checkpoint, tmp_path / "out", "Full").complete


def test_no_equal_file_is_recorded_before_one_was_compared_with_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = made(tmp_path, "replicas")
    damaging(monkeypatch, 0)
    with pytest.raises(BugError, match=r"rank_0.*parameter w3 differs from"):
        transformed(checkpoint, tmp_path / "out", "Full")
    assert not {f"rank_{rank}.json" for rank in (0, 2, 4, 6)} & {p.name for p in tmp_path.glob("out/.reshard/*/records/*")}
    assert not [path for rank in (0, 2, 4, 6) for path in tmp_path.glob(f"out/rank_{rank}/*")]
