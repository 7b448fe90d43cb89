"""The steps that the operator's pods run, with folders in place of their volumes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import disk
import pytest
from rawfiles import same

import reshard
from reshard.checkpoint.manifest import MANIFEST_NAME, encode
from reshard.cli import main, step
from reshard.errors import LockedError
from reshard.spec.messages import (
    MESSAGE_VERSION,
    CommitMessage,
    PlanMessage,
    RankSeconds,
    TransformMessage,
    encode_message,
)
from reshard.spec.ranks import Grouping
from reshard.storage.local import LocalStore
from reshard.target.documents import LOCK
from reshard.target.folder import TargetFolder
from reshard.target.lock import STALE_SECONDS, LockOwner, locked, member_path

if TYPE_CHECKING:
    from pathlib import Path

SPEC: dict[str, Any] = {
    "source": {"storage": {"persistentVolumeClaim": {"claimName": "a", "path": "src"}}, "strategy": {"path": "source.ckpt"}},
    "target": {
        "storage": {"persistentVolumeClaim": {"claimName": "b", "path": "dst"}},
        "strategy": {"path": "target.ckpt", "storage": {"persistentVolumeClaim": {"claimName": "a"}}},
    },
    "execution": {"ranksPerPod": 4},
}


class Pods:
    """The operator's inputs to its pods, and the pods' results."""

    def __init__(self, volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._volumes, self._environment = volumes, monkeypatch
        self._log = volumes / "termination-log"
        self._log.touch()
        monkeypatch.setattr("reshard.spec.mounts.VOLUMES", str(volumes))
        monkeypatch.setenv("RESHARD_TERMINATION_LOG", str(self._log))
        self.spec = SPEC
        self.text: str | None = None
        self.grouping = '{"run": 4, "count": 1, "stride": 4}'
        self._digest = "none"
        self.made = disk.write(volumes / "source", disk.example())
        (volumes / "source-strategy").mkdir()
        self.made.target_strategy.rename(volumes / "source-strategy" / "target.ckpt")
        (volumes / "source-strategy").rename(volumes / "target-strategy")
        (volumes / "target").mkdir()

    @property
    def target(self) -> Path:
        return self._volumes / "target" / "dst"

    def run(self, step: str, *, expect: int = 0, owner: str = "uid-1", **variables: str) -> dict[str, Any]:
        self._log.write_text("")
        text = json.dumps(self.spec) if self.text is None else self.text
        folder = self._volumes / "spec"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "..data").mkdir(parents=True)  # as the kubelet writes them
        for number, at in enumerate(range(0, len(text), 100)):
            (folder / "..data" / f"{number:03}").write_text(text[at : at + 100])
            (folder / f"{number:03}").symlink_to(f"..data/{number:03}")
        digest = hashlib.sha256(text.encode()).hexdigest()
        spec = {"RESHARD_SPEC": str(folder), "RESHARD_SPEC_SHA256": digest}
        given = {
            "RESHARD_OWNER": owner,
            "RESHARD_TARGET_RANKS": "6",
            "RESHARD_PARALLELISM": "2",
            "RESHARD_GROUPING": self.grouping,
            "RESHARD_DIGEST": self._digest,
            **spec,
            **variables,
        }
        for name, value in given.items():
            self._environment.setenv(name, value)
        assert main(["step", step]) == expect
        text = self._log.read_text()
        assert text.isascii()
        assert len(text) <= 2000
        found: dict[str, Any] = json.loads(text)
        assert found.pop("version") == MESSAGE_VERSION
        if step == "plan":
            self.grouping, self._digest = json.dumps(found.get("grouping")), found.get("digest", self._digest)
        return found


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pods:
    return Pods(tmp_path, monkeypatch)


def test_plan_and_ranks_equal_one_transform(pods: Pods) -> None:
    planned = pods.run("plan")
    assert (planned["sourceRanks"], planned["targetRanks"], planned["complete"], planned["finishedRanks"]) == (4, 6, False, 0)
    first = pods.run("ranks", JOB_COMPLETION_INDEX="0")
    assert (first["bytesWritten"] > 0, first["committed"]) == (True, None)
    last = pods.run("ranks", JOB_COMPLETION_INDEX="1")
    committed = last["committed"]
    assert committed["digest"] == planned["digest"]
    assert committed["bytesWritten"] == first["bytesWritten"] + last["bytesWritten"]
    assert sum(committed["rankSeconds"]["counts"]) == 6
    assert committed["rankSeconds"]["sum"] > 0
    assert disk.differences(pods.made.model, pods.target, "ckpt") == []
    again = pods.run("ranks", JOB_COMPLETION_INDEX="0")  # its node was lost before it reported its end
    assert (again["bytesWritten"], again["committed"]) == (0, committed)
    assert pods.run("commit") == committed
    assert pods.run("plan", owner="uid-2")["complete"]
    assert not (pods.target / ".reshard").exists() or not any((pods.target / ".reshard").iterdir())


def test_the_plan_divides_the_ranks(pods: Pods) -> None:
    """In the example, all ranks need columns of the same rows, so the fewest pods that the parallelism allows fetch least."""
    pods.spec = {side: SPEC[side] for side in ("source", "target")}
    counts = []
    for parallelism in (6, 2):
        planned = pods.run("plan", RESHARD_PARALLELISM=str(parallelism))
        grouping = Grouping(**planned["grouping"])
        counts.append(grouping.groups(6))
        assert planned["bytesFetched"] >= planned["bytesDistinct"]
    assert counts == [6, 2]
    for index in range(2):
        pods.run("ranks", JOB_COMPLETION_INDEX=str(index))
    assert disk.differences(pods.made.model, pods.target, "ckpt") == []


def test_one_pod_does_what_several_do(pods: Pods) -> None:
    done = pods.run("transform")
    assert (done["plan"]["targetRanks"], done["plan"]["grouping"]) == (6, {"run": 6, "count": 1, "stride": 6})
    assert done["plan"]["memoryBytes"] < 512 << 20
    assert done["committed"]["digest"] == done["plan"]["digest"]
    assert done["committed"]["manifest"] == MANIFEST_NAME
    assert disk.differences(pods.made.model, pods.target, "ckpt") == []
    assert pods.run("commit", RESHARD_DIGEST=done["plan"]["digest"]) == done["committed"]
    again = pods.run("transform", owner="uid-2")
    assert (again["plan"]["complete"], again["committed"]) == (True, None)
    assert not (pods.target / ".reshard").exists() or not any((pods.target / ".reshard").iterdir())


@pytest.mark.parametrize("first", ["plan", "ranks"])
def test_one_pod_continues_what_several_began(pods: Pods, first: str) -> None:
    planned = pods.run("plan")
    if first == "ranks":
        pods.run("ranks", JOB_COMPLETION_INDEX="1")
    done = pods.run("transform", owner="uid-2")
    assert (done["plan"]["digest"], done["plan"]["finishedRanks"]) == (planned["digest"], 2 if first == "ranks" else 0)
    assert done["committed"]["manifest"] == MANIFEST_NAME
    assert disk.differences(pods.made.model, pods.target, "ckpt") == []


def test_one_pod_writes_some_ranks(pods: Pods) -> None:
    pods.spec = SPEC | {"target": SPEC["target"] | {"onlyRanks": "5,1-2"}}
    assert pods.run("transform")["committed"]["manifest"] == MANIFEST_NAME
    assert sorted(path.name for path in pods.target.glob("rank_*")) == ["rank_1", "rank_2", "rank_5"]


def test_a_dry_run_in_one_pod_leaves_nothing(pods: Pods) -> None:
    pods.spec = SPEC | {"dryRun": True}
    done = pods.run("transform")
    assert (done["plan"]["targetRanks"], done["committed"]) == (6, None)
    assert not pods.target.exists()


def test_one_pod_reports_what_is_wrong_with_the_source(pods: Pods) -> None:
    next((pods.made.source / "rank_3").iterdir()).unlink()
    assert pods.run("transform", expect=66)["exitCode"] == 66


def test_the_longest_messages_are_short_enough() -> None:
    """The worst characters take two bytes each."""
    most = (1 << 63) - 1
    plan = PlanMessage(
        *(10**6, 10**6, most, most, most, most, "d" * 64),
        grouping=Grouping(1000, 1000, 10**6),
        finished_ranks=10**6,
        complete=False,
        notes=('"' * 140,) * 4,
    )
    committed = CommitMessage("d" * 64, most, most, most, MANIFEST_NAME, RankSeconds((10**6,) * 13, 10**9 + 0.123))
    assert len(encode_message(TransformMessage(plan, committed))) <= 2000


def test_the_commit_step_completes_what_the_last_rank_does_not(pods: Pods) -> None:
    """A pod that was killed leaves its member of the lock, so the last pod does not know whether it still writes."""
    pods.run("plan")
    member = pods.target / member_path(LOCK, "host-1-0", "uid-1")
    for index in range(2):
        member.touch()
        assert pods.run("ranks", JOB_COMPLETION_INDEX=str(index))["committed"] is None
    assert pods.run("commit")["manifest"] == MANIFEST_NAME
    assert disk.differences(pods.made.model, pods.target, "ckpt") == []


def test_a_commit_that_fails_is_left_to_the_commit_step(pods: Pods) -> None:
    pods.run("plan")
    pods.run("ranks", JOB_COMPLETION_INDEX="0")
    (file,) = (pods.target / "rank_2").iterdir()
    file.chmod(0o600)
    file.write_bytes(bytes(file.stat().st_size))
    assert pods.run("ranks", JOB_COMPLETION_INDEX="1")["committed"] is None
    failed = pods.run("commit", expect=66)
    assert "1 of 6 ranks are not finished or have changed: 2" in failed["message"]


def test_a_bug_in_the_commit_does_not_fail_the_pod_of_the_last_rank(
    pods: Pods, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pods.run("plan")
    pods.run("ranks", JOB_COMPLETION_INDEX="0")

    def fails(*_: object, **__: object) -> None:
        raise KeyError("layer")

    with monkeypatch.context() as broken:
        broken.setattr(step, "commit_if_complete", fails)
        assert pods.run("ranks", JOB_COMPLETION_INDEX="1", RESHARD_LOG_LEVEL="debug")["committed"] is None
    said = capsys.readouterr().err
    assert "left to the commit step: KeyError: 'layer'" in said
    assert "in fails" in said  # the traceback
    pods.run("commit")


def test_a_pod_of_another_plan_does_not_commit(pods: Pods) -> None:
    pods.run("plan")
    for index in range(2):
        assert pods.run("ranks", JOB_COMPLETION_INDEX=str(index), RESHARD_DIGEST="0" * 64)["committed"] is None


@pytest.mark.parametrize("steps", [("plan", "commit"), ("transform",)])
def test_plan_and_commit_make_an_index(pods: Pods, steps: tuple[str, ...]) -> None:
    pods.spec = SPEC | {"target": SPEC["target"] | {"output": "Index"}}
    if steps == ("transform",):
        done = pods.run("transform")
        planned, committed = done["plan"], done["committed"]
    else:
        planned = pods.run("plan")
        committed = pods.run("commit")
    assert (planned["targetRanks"], planned["complete"]) == (6, False)
    assert committed["bytesWritten"] == (pods.target / "reshard-index.json").stat().st_size
    assert pods.run("commit", RESHARD_DIGEST=planned["digest"]) == committed
    assert pods.run("plan", owner="uid-2")["complete"]
    assert same(reshard.load(str(pods.made.source), index=str(pods.target), rank=2), pods.made.model.target(2))


def test_a_commit_before_the_last_rank_names_the_missing_ranks(pods: Pods) -> None:
    planned = pods.run("plan")
    pods.run("ranks", JOB_COMPLETION_INDEX="0")
    failed = pods.run("commit", RESHARD_DIGEST=planned["digest"], expect=66)
    assert failed["reason"] == "RanksUnfinished"
    assert "2 of 6 ranks are not finished or have changed: 4-5" in failed["message"]


def test_a_dry_run_leaves_nothing(pods: Pods) -> None:
    pods.spec = SPEC | {"dryRun": True}
    assert pods.run("plan")["targetRanks"] == 6
    assert not pods.target.exists()


def test_a_repaired_source_replaces_the_unfinished_attempt(pods: Pods) -> None:
    """The next attempt has another digest, because the source has changed; the ranks of the old one are discarded."""
    source = next((pods.made.source / "rank_3").iterdir())
    whole = source.read_bytes()
    source.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    old = pods.run("plan")
    pods.run("ranks", JOB_COMPLETION_INDEX="0")
    source.write_bytes(whole)
    new = pods.run("plan")
    assert (new["digest"] != old["digest"], new["finishedRanks"]) == (True, 0)
    assert [job.digest for job in TargetFolder(LocalStore(pods.target), 0o640).observe().tasks] == [new["digest"]]
    for index in range(2):
        assert pods.run("ranks", JOB_COMPLETION_INDEX=str(index))["bytesWritten"] > 0
    pods.run("commit", RESHARD_DIGEST=old["digest"], expect=66)
    pods.run("commit", RESHARD_DIGEST=new["digest"])
    assert disk.differences(pods.made.model, pods.target, "ckpt") == []


def test_undescribed_files_are_never_mistaken_for_an_old_attempt(pods: Pods) -> None:
    pods.run("plan")
    pods.run("ranks", JOB_COMPLETION_INDEX="0")
    (pods.target / "rank_0" / "precious.ckpt").write_bytes(b"x")
    source = next((pods.made.source / "rank_3").iterdir())
    whole = source.read_bytes()
    source.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    failed = pods.run("plan", expect=78)
    assert failed["reason"] == "TargetExists"
    assert "rank_0" in failed["message"]


def test_another_transform_is_kept_out_by_the_lock(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.cli.step._FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("reshard.cli.step._LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("reshard.cli.step._LOCK_SECONDS", 0.05)
    store = LocalStore(pods.target)
    with locked(store, LOCK, owner="uid-other", mode=0o640):
        failed = pods.run("plan", expect=LockedError.exit_code)
    assert failed["reason"] == "TargetLocked"
    pods.run("plan")


def test_a_step_waits_until_the_lock_of_a_killed_pod_expires(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.cli.step._FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("reshard.cli.step._LONGEST_WAIT_SECONDS", 0.01)
    lock = pods.target / LOCK
    lock.parent.mkdir(parents=True)
    lock.write_bytes(encode(LockOwner("someone", "elsewhere", "")))
    os.utime(lock, (time.time() - STALE_SECONDS + 0.5,) * 2)
    pods.run("plan")


def test_a_lock_that_is_lost_after_long_work_is_tried_again(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reshard.cli.step._FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr("reshard.cli.step._LOCK_SECONDS", 0.0)
    plan, lost = step.plan_transform, [LockedError("LockLost", "lost", where="x", fix="retry")]

    def loses_once(*arguments: Any, **options: Any) -> Any:
        if lost:
            raise lost.pop()
        return plan(*arguments, **options)

    monkeypatch.setattr(step, "plan_transform", loses_once)
    pods.run("plan")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RESHARD_SPEC": "/none"}, "SpecMismatch"),
        ({"RESHARD_SPEC_SHA256": "0"}, "SpecMismatch"),
        ({"RESHARD_TARGET_RANKS": "-1", "JOB_COMPLETION_INDEX": "0"}, "RESHARD_TARGET_RANKS"),
        ({"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX"),
        ({"JOB_COMPLETION_INDEX": "7"}, "index 7 has no ranks"),
        ({"JOB_COMPLETION_INDEX": "0", "RESHARD_GROUPING": '{"run": 0}'}, "the text is not a grouping"),
    ],
)
def test_wrong_variables_are_named(pods: Pods, variables: dict[str, str], said: str) -> None:
    assert said in pods.run("ranks", expect=2, **variables)["message"]


@pytest.mark.parametrize(("text", "said"), [("{", "not JSON"), (json.dumps(SPEC | {"sauce": 1}), "sauce")])
def test_a_spec_that_cannot_be_read_is_named(pods: Pods, text: str, said: str) -> None:
    pods.text = text
    assert said in pods.run("plan", expect=2)["message"]


def test_the_ranks_of_the_spec_are_spread_over_the_indexes(pods: Pods) -> None:
    pods.spec = SPEC | {"target": SPEC["target"] | {"onlyRanks": "5,1-2"}, "execution": {"ranksPerPod": 2}}
    pods.run("plan")
    pods.run("ranks", JOB_COMPLETION_INDEX="1")
    assert [path.name for path in pods.target.glob("rank_*")] == ["rank_5"]


def test_a_long_message_keeps_its_remedy(pods: Pods) -> None:
    pods.spec = SPEC | {"source": SPEC["source"] | {"files": {"pattern": "ä" * 250}}}
    failed = pods.run("plan", expect=66)
    assert failed["exitCode"] == 66
    assert failed["message"].isascii()


def linked(pods: Pods, name: str, to: Path) -> None:
    """Replace a file on the source's claim by a link to a copy of it."""
    file = next(pods.made.source.glob(name))
    to.parent.mkdir(parents=True, exist_ok=True)
    file.rename(to)
    file.symlink_to(to)


@pytest.mark.parametrize("name", ["rank_0/*", "../source.ckpt"])
def test_a_link_out_of_a_claim_is_refused(pods: Pods, tmp_path: Path, name: str) -> None:
    linked(pods, name, tmp_path / "keys" / "key.ckpt")
    failed = pods.run("plan", expect=65)
    assert failed["reason"] == "LinkOutside"
    assert "keys" not in failed["message"]


def test_a_link_that_is_replaced_after_the_plan_is_refused(pods: Pods, tmp_path: Path) -> None:
    pods.run("plan")
    linked(pods, "rank_0/*", tmp_path / "keys" / "key.ckpt")
    assert pods.run("ranks", expect=65, JOB_COMPLETION_INDEX="0")["reason"] == "LinkOutside"


def test_a_link_within_a_claim_is_followed(pods: Pods) -> None:
    linked(pods, "rank_0/*", pods.made.source.parent / "blobs" / "x.ckpt")
    pods.run("plan")


def test_a_target_behind_a_link_out_of_its_claim_is_refused(pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    pods.target.symlink_to(tmp_path / "elsewhere")
    assert pods.run("plan", expect=65)["reason"] == "LinkOutside"
