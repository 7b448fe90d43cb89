"""Processes that write the ranks of one target together: the last one commits, once, whatever happens to the others."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import disk
import effort
import msgspec
import pytest
from disk import leftovers, right, run
from killing import killed_after

from reshard.checkpoint.manifest import MANIFEST_NAME, encode
from reshard.errors import MissingInputError
from reshard.spec.request import Options, Request
from reshard.target.documents import LOCK
from reshard.target.folder import TargetFolder
from reshard.target.lock import STALE_SECONDS, LockOwner, member_path
from reshard.transform.complete import commit_checkpoint, commit_if_complete
from reshard.transform.plan import plan_transform
from reshard.transform.run import transform_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    import thin_s3

    from reshard.checkpoint.manifest import Manifest

OWNER = "uid-1"
RANKS = range(6)


def planned(made: disk.Checkpoint, target: Path | str) -> tuple[Request, str]:
    request = Request(str(made.source), str(target), str(made.source_strategy), str(made.target_strategy))
    request = msgspec.structs.replace(request, options=Options(overwrite="Replace"))
    return request, plan_transform(request, write=True, owner=OWNER).digest


def write(request: Request, ranks: str) -> None:
    options = msgspec.structs.replace(request.options, only_ranks=ranks)
    transform_checkpoint(msgspec.structs.replace(request, options=options), workers=1, commit=False, owner=OWNER)


def write_together(made: disk.Checkpoint, target: str, seed: int) -> None:
    """Write each rank in a thread, which commits if it is the last. The threads end in an order that depends on the seed."""
    request, digest = planned(made, target)
    barrier = threading.Barrier(len(RANKS))

    def work(rank: int) -> Manifest | None:
        barrier.wait()
        time.sleep(0.002 * (rank * seed % 7))
        write(request, str(rank))
        return commit_if_complete(target, digest, ranks=RANKS)

    with ThreadPoolExecutor(len(RANKS)) as pool:
        found = [manifest for manifest in pool.map(work, RANKS) if manifest is not None]
    assert found
    assert {manifest.ranks for manifest in found} == {"0-5"}


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("seed", range(effort.share(20)))
def test_one_of_the_processes_that_finish_together_commits(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, *, seed: int, staged: bool
) -> None:
    if staged:
        assert run(other, target) == 0
    write_together(made, str(target), seed)
    assert right(made, target)
    assert leftovers(target) == []


@pytest.mark.parametrize("seed", range(effort.share(20)))
def test_one_of_them_commits_in_a_bucket(made: disk.Checkpoint, server: thin_s3.ThinServer, seed: int) -> None:
    write_together(made, "s3://bucket/out", seed)
    assert [key for _, key in server.objects if "/.reshard/" in key] == []


@pytest.mark.parametrize("files", RANKS)
def test_the_commit_step_completes_a_replacement_that_the_last_rank_began(
    made: disk.Checkpoint, other: disk.Checkpoint, target: Path, files: int
) -> None:
    assert run(other, target) == 0
    request, digest = planned(made, target)
    write(request, "0-5")
    with killed_after(files), pytest.raises(KeyboardInterrupt):
        commit_if_complete(str(target), digest, ranks=RANKS)
    assert not (target / MANIFEST_NAME).exists()
    assert commit_checkpoint(str(target), digest=digest, owner=OWNER).ranks == "0-5"
    assert right(made, target)
    assert leftovers(target) == []


@pytest.mark.parametrize("moment", ["write_manifest", "forget_tasks"])
def test_the_commit_step_completes_what_the_last_rank_began(
    made: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    request, digest = planned(made, target)
    write(request, "0-5")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TargetFolder, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        commit_if_complete(str(target), digest, ranks=RANKS)
    monkeypatch.undo()
    assert commit_checkpoint(str(target), digest=digest, owner=OWNER).ranks == "0-5"
    assert right(made, target)
    assert leftovers(target) == []


def test_the_commit_step_leaves_no_lock_of_a_pod_that_was_killed(made: disk.Checkpoint, target: Path) -> None:
    """A pod on another machine, so that only the age of its file could show that it has ended."""
    request, digest = planned(made, target)
    write(request, "0-5")
    (target / LOCK).write_bytes(encode(LockOwner(OWNER, "elsewhere", "", shared=True)))
    (target / member_path(LOCK, "killed", OWNER)).touch()
    assert commit_if_complete(str(target), digest, ranks=RANKS) is None
    assert commit_checkpoint(str(target), digest=digest, owner=OWNER).ranks == "0-5"
    assert right(made, target)
    assert leftovers(target) == []


def test_a_locked_target_is_left_to_the_commit_step(made: disk.Checkpoint, target: Path) -> None:
    """The lock of a process that was killed while it committed, on another host, until it expires."""
    request, digest = planned(made, target)
    write(request, "0-5")
    lock = target / LOCK
    lock.write_bytes(encode(LockOwner("someone", "elsewhere", "")))
    assert commit_if_complete(str(target), digest, ranks=RANKS) is None
    os.utime(lock, (time.time() - STALE_SECONDS - 1,) * 2)
    assert commit_if_complete(str(target), digest, ranks=RANKS) is not None
    assert right(made, target)


@pytest.mark.parametrize("committed", [False, True])
def test_ranks_that_an_earlier_run_did_not_verify_are_waited_for(made: disk.Checkpoint, target: Path, *, committed: bool) -> None:
    request = Request(str(made.source), str(target), str(made.source_strategy), str(made.target_strategy))
    unverified = msgspec.structs.replace(request, options=Options(verification="None"))
    transform_checkpoint(unverified, workers=1, commit=committed)
    verified = msgspec.structs.replace(request, options=Options(verification="Full"))
    digest = plan_transform(verified, write=True, owner=OWNER).digest
    for rank in RANKS[:-1]:
        write(verified, str(rank))
        with pytest.raises(MissingInputError, match=f"not finished or have changed: .*{RANKS[-1]}"):
            commit_if_complete(str(target), digest, ranks=RANKS, verification="Full")
    write(verified, str(RANKS[-1]))
    manifest = commit_if_complete(str(target), digest, ranks=RANKS, verification="Full")
    assert manifest is not None
    assert {record.verified for record in manifest.files} == {"Full"}
    assert right(made, target)
