"""Stages of a pipeline as resources of their own, with one target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pipelines

from reshard.checkpoint.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from transforms_on_cluster import Stage


def of_stage(cluster: Stage, number: int, **more: Any) -> dict[str, Any]:
    """Return a resource's spec for one stage of the pipeline next to the checkpoint."""
    spec = cluster.spec(**more)
    spec["source"]["storage"]["persistentVolumeClaim"]["path"] = "pipeline/src"
    spec["source"]["strategy"] = {"path": f"pipeline/src_strategy_{number}.ckpt"}
    spec["target"]["strategy"] |= {"path": "pipeline/target.ckpt"}
    spec["target"]["output"] = "Stage"
    return spec


def put_pipeline(cluster: Stage) -> pipelines.Pipeline:
    made = pipelines.write(cluster.source / "pipeline", pipelines.pipeline())
    for path in (made.made.folder, *made.made.folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
    return made


def test_two_stages_at_once(stage: Stage) -> None:
    """Neither waits for the other, and the one that finds both parts completes the checkpoint."""
    made = put_pipeline(stage)
    for number in (1, 0):
        stage.create(f"stage-{number}", of_stage(stage, number, suspend=True))
        stage.wait(f"stage-{number}", lambda s: s.get("phase") == "Suspended")
    for number in (1, 0):
        stage.change(f"stage-{number}", {"suspend": False})
    statuses = [stage.ended(f"stage-{number}") for number in (0, 1)]
    assert pipelines.differences(made.made.model, stage.results / "out") == []
    reasons = {stage.ready(f"stage-{number}")["reason"] for number in (0, 1)}
    assert "Complete" in reasons <= {"Complete", "StageComplete"}
    assert MANIFEST_NAME in {status["manifest"] for status in statuses}
    assert (stage.results / "out" / MANIFEST_NAME).exists()


def test_one_stage_after_the_other_and_one_twice(stage: Stage) -> None:
    made = put_pipeline(stage)
    stage.create("first", of_stage(stage, 0))
    assert stage.ended("first")["manifest"] == ""
    assert stage.ready("first")["reason"] == "StageComplete"
    assert not (stage.results / "out" / MANIFEST_NAME).exists()
    stage.create("second", of_stage(stage, 1))
    assert stage.ended("second")["manifest"] == MANIFEST_NAME
    stage.create("again", of_stage(stage, 0))
    stage.ended("again")
    assert stage.ready("again")["reason"] == "AlreadyComplete"
    assert pipelines.differences(made.made.model, stage.results / "out") == []
