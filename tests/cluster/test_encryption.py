"""Encrypted checkpoints by pods: their keys come from Secrets, and appear nowhere else."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
import rawfiles
from disk import contents, differences
from kubernetes_objects import wait_for
from transforms_on_cluster import RELEASE, SYSTEM, without_a_cluster

if TYPE_CHECKING:
    from pathlib import Path

    from transforms_on_cluster import Stage

# Only characters that neither text nor JSON escapes, so that a key is found wherever it is written.
KEYS = {"AES-GCM": b"a key, no poetry", "AES-CBC": b"another key, too"}
OTHER = b"neither of these"
CLAIM = {"persistentVolumeClaim": {"claimName": "checkpoints"}}
BLOCK_BYTES = 300  # several for each file


def key(mode: str) -> dict[str, Any]:
    """Return a reference to the Secret's entry that is named after the mode."""
    return {"secretKeyRef": {"name": "keys", "key": mode}, "mode": mode}


def encrypt(stage: Stage, mode: str) -> None:
    """The source's files, as MindSpore does."""
    for path in stage.made.source.rglob("*.ckpt"):
        path.write_bytes(rawfiles.encrypted(path.read_bytes(), mode, KEYS[mode], BLOCK_BYTES))


def decrypted(folder: Path, mode: str | None) -> dict[str, bytes]:
    """Return the contents of a target's files."""
    found = contents(folder)
    return {name: rawfiles.decrypted(content, mode, KEYS[mode]) for name, content in found.items()} if mode else found


def shows_a_key(content: str | bytes) -> bool:
    text = content.encode() if isinstance(content, str) else content
    return any(form in text for key in (*KEYS.values(), OTHER) for form in (key, base64.b64encode(key), key.hex().encode()))


def places_of_keys(stage: Stage) -> list[str]:
    """Return the places that show a key: objects except the Secret, logs, and files at targets."""
    objects = "checkpointtransforms,jobs,pods,events,configmaps"
    seen: dict[str, str | bytes] = {objects: stage.kubectl("get", objects, "--output", "json", "--show-managed-fields")}
    operator = (f"deployment/{RELEASE}-operator", "--namespace", SYSTEM)
    stage.kubectl("rollout", "status", *operator)  # another test may have killed it
    seen["operator"] = wait_for(lambda: stage.kubectl("logs", *operator))  # of one that has just started, empty at first
    for pod in (pod.metadata.name for step in ("plan", "ranks", "commit") for pod in stage.pods(step)):
        seen[pod] = stage.kubectl("logs", pod)
    seen |= {str(path): path.read_bytes() for path in stage.results.rglob("*") if path.is_file()}
    assert all(seen.values())
    return [place for place, content in seen.items() if shows_a_key(content)]


def try_again(stage: Stage, name: str, attempt: int, keys: dict[str, bytes]) -> None:
    """Replace the entries in the Secret, and request the next attempt."""
    stage.secret("keys", keys)
    stage.change(name, {"execution": {"attempt": attempt}})
    stage.wait(name, lambda s: s.get("attempt") == attempt)


def test_from_plain_files_to_one_mode_to_another_and_back(stage: Stage, tmp_path: Path) -> None:
    """Each step's files hold what the same step writes without a cluster and without keys."""
    stage.secret("keys", KEYS)

    def made_before(name: str, strategy: str) -> dict[str, Any]:
        storage = {"persistentVolumeClaim": {"claimName": "results", "path": name}}
        return {"storage": storage, "strategy": {"path": strategy, "storage": CLAIM}}

    back = {"strategy": {"path": "source.ckpt", "storage": CLAIM}}
    (tmp_path / "plain").mkdir()
    for name, source, target in (
        ("sealed", {}, {"encryption": key("AES-GCM")}),
        ("again", made_before("sealed", "target.ckpt") | {"decryption": key("AES-GCM")}, back | {"encryption": key("AES-CBC")}),
        ("opened", made_before("again", "source.ckpt") | {"decryption": key("AES-CBC")}, {}),
    ):
        spec = stage.spec(name, source=source, target=target, verification="Full")
        stage.create(name, spec)
        stage.ended(name)
        mode = spec["target"].pop("encryption", {}).get("mode")
        spec["source"].pop("decryption", None)
        without_a_cluster(spec, tmp_path, checkpoints=stage.source, results=tmp_path / "plain")
        assert decrypted(stage.results / name, mode) == contents(tmp_path / "plain" / name)
    assert stage.differences("opened") == []
    assert shows_a_key(stage.kubectl("get", "secrets", "--output", "json"))  # so the test can detect it
    assert places_of_keys(stage) == []


@pytest.mark.parametrize(
    ("mode", "given", "reason", "fix"),
    [
        ("AES-GCM", OTHER, "WrongKey", "use the key that the file was encrypted with"),
        ("AES-CBC", OTHER, "WrongKey", "use the key that the file was encrypted with"),
        ("AES-GCM", (2 * OTHER).hex().encode(), "InvalidKey", "raw bytes, not hexadecimal or base64 text"),
    ],
    ids=["another, AES-GCM", "another, AES-CBC", "as hexadecimal"],
)
def test_a_wrong_key_fails_before_anything_is_written_until_the_secret_has_the_right_one(
    stage: Stage, mode: str, given: bytes, reason: str, fix: str
) -> None:
    encrypt(stage, mode)
    stage.secret("keys", {mode: given})
    stage.create("wrong", stage.spec(source={"decryption": key(mode)}))
    stage.ended("wrong", "Failed")
    assert stage.ready("wrong")["reason"] == reason
    assert fix in stage.ready("wrong")["message"]
    assert (len(stage.pods("plan")), stage.pods("ranks")) == (1, [])  # no second try of what cannot succeed
    assert list(stage.results.iterdir()) == []
    assert places_of_keys(stage) == []
    try_again(stage, "wrong", 2, KEYS)
    stage.ended("wrong")
    assert stage.differences() == []


def test_keys_changed_during_a_run_are_detected_and_partial_output_shows_none(stage: Stage, tmp_path: Path) -> None:
    encrypt(stage, "AES-GCM")
    stage.secret("keys", KEYS)
    spec = stage.spec(
        source={"decryption": key("AES-GCM")},
        target={"encryption": key("AES-CBC")},
        execution={"parallelism": 1, "ranksPerPod": 1},
    )
    stage.create("changed", spec)
    wait_for(lambda: list(stage.results.glob("out/.reshard/*/records/*")))  # the status reports it later, perhaps too late
    stage.change("changed", {"suspend": True})
    stage.wait("changed", lambda s: s["phase"] == "Suspended")
    assert list((stage.results / "out" / ".reshard").iterdir()) != []
    assert places_of_keys(stage) == []

    stage.secret("keys", {"AES-GCM": OTHER})
    stage.change("changed", {"suspend": False})
    stage.ended("changed", "Failed")
    assert stage.ready("changed")["reason"] == "WrongKey"
    try_again(stage, "changed", 2, KEYS | {"AES-CBC": OTHER})
    stage.ended("changed", "Failed")
    assert stage.ready("changed")["reason"] == "OtherKey"
    try_again(stage, "changed", 3, KEYS)
    stage.ended("changed")
    for name, content in decrypted(stage.results / "out", "AES-CBC").items():
        (tmp_path / "opened" / name).parent.mkdir(parents=True)
        (tmp_path / "opened" / name).write_bytes(content)
    assert differences(stage.made.model, tmp_path / "opened", "ckpt") == []

    stage.secret("keys", {"AES-CBC": OTHER})
    stage.create("same", spec)
    stage.ended("same", "Failed")
    assert stage.ready("same")["reason"] == "OtherKey"  # and not AlreadyComplete


def test_a_missing_key_is_named_and_waited_for(stage: Stage) -> None:
    """First the Secret is missing, then its entry."""
    stage.create("waits", stage.spec(target={"encryption": key("AES-GCM")}))
    for said, then in (
        ('secret "keys" not found (Secret keys)', {"AES-CBC": KEYS["AES-CBC"]}),
        ("references non-existent secret key: AES-GCM (Secret keys)", KEYS),
    ):
        status = stage.wait("waits", lambda _, said=said: said in stage.ready("waits").get("message", ""))
        assert (status["phase"], stage.ready("waits")["reason"]) == ("Planning", "FailedMount")
        shown = stage.kubectl("get", "checkpointtransform", "waits", "--output", "wide")
        assert "FailedMount" in shown
        assert said in shown
        stage.secret("keys", then)
    stage.ended("waits")
    assert len(decrypted(stage.results / "out", "AES-GCM")) == 6
