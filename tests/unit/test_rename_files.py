"""Rules in examples/renames: they rename all parameters, and refuse models for which names are not enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import rawfiles
from language_models import COLUMNS, names, tensors, write_dcp, write_mindspore
from pages import ROOT

from reshard.cli import main
from reshard.errors import MissingInputError
from reshard.plan.rules import renamed, unapplied
from reshard.spec.resource import parse_rename_rules

if TYPE_CHECKING:
    from pathlib import Path

    from reshard.spec.rules import RenameRule

FILES = ROOT / "examples" / "renames"
OTHERS = COLUMNS[1:]
DIRECTIONS = [pair for other in OTHERS for pair in (("huggingface", other), (other, "huggingface"))]


def path_of(source: str, target: str) -> Path:
    return FILES / f"{source}-to-{target}.yaml"


def rules_of(source: str, target: str) -> tuple[RenameRule, ...]:
    path = path_of(source, target)
    return parse_rename_rules(path.read_text(), path.name)


def test_each_file_is_tested() -> None:
    assert sorted(FILES.glob("*.yaml")) == sorted(path_of(*pair) for pair in DIRECTIONS)
    readme = (FILES / "README.md").read_text()
    assert all(path_of(*pair).name in readme for pair in DIRECTIONS)


@pytest.mark.parametrize("layers", [1, 12])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_all_parameters_are_renamed(source: str, target: str, layers: int) -> None:
    expected = names(source, target, layers)
    rules = rules_of(source, target)
    assert renamed(expected, rules) == expected
    assert unapplied(expected, rules) == ()


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
def test_optimizer_state_is_not_renamed(source: str, target: str) -> None:
    state = [f"{prefix}{name}" for name in names(source, target) for prefix in ("optimizer.state.", "adam_m.")]
    made = renamed([*names(source, target), *state], rules_of(source, target))
    assert [made[name] for name in state] == state


def changed(source: str, target: str, old: str, new: str | None) -> list[str]:
    """Return the names of a model in which parameters have other names, or are missing."""
    found = names(source, target)
    assert any(old in name for name in found)
    return [name if old not in name else name.replace(old, new) for name in found if old not in name or new is not None]


@pytest.mark.parametrize(
    ("source", "target", "old", "new"),
    [
        # Llama 3, whose queries and keys torchtitan stores in another order
        *((*pair, "_norm.weight", None) for pair in DIRECTIONS if "torchtitan" in "".join(pair)),
        # joined weights
        ("mindformers-llama", "huggingface", "attention.wq", "attention.w_qkv"),
        ("mindformers-llama", "huggingface", "feed_forward.w1", "feed_forward.w_gate_hidden"),
        ("torchtitan-qwen3", "huggingface", "qkv_linear.wq", "qkv_linear.wqkv"),
        # mixtures of experts
        *(("huggingface", other, "mlp.gate_proj", "mlp.experts.0.gate_proj") for other in OTHERS),
        ("torchtitan-qwen3", "huggingface", "feed_forward.w1", "moe.routed_experts.inner_experts.w1"),
        ("torchtitan-0.2-qwen3", "huggingface", "feed_forward.w1", "moe.experts.w1"),
        ("mindformers-llama", "huggingface", "feed_forward.w1", "feed_forward.ffn.w1"),
        # tied embeddings
        *(("huggingface", other, "lm_head.weight", None) for other in OTHERS if "torchtitan" in other),
        # names of another version
        ("torchtitan-qwen3", "huggingface", "qkv_linear.", ""),
        ("torchtitan-0.2-qwen3", "huggingface", "attention.w", "attention.qkv_linear.w"),
    ],
)
def test_models_for_which_names_are_not_enough_are_refused(source: str, target: str, old: str, new: str | None) -> None:
    with pytest.raises(MissingInputError, match="RenamedMissing"):
        renamed(changed(source, target, old, new), rules_of(source, target))


def read_huggingface(folder: Path) -> rawfiles.Tensors:
    return rawfiles.read_safetensors((folder / "model.safetensors").read_bytes())


@pytest.mark.parametrize("other", [name for name in OTHERS if "torchtitan" in name])
def test_torchtitan_to_hugging_face_and_back(other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = names(other, "huggingface")
    arrays = tensors(expected)
    write_dcp(tmp_path / "trained", arrays)
    head = "output.*" if "output.weight" in arrays else "lm_head.*"
    wanted = [text for pattern in ("tok_embeddings.*", "layers.*", "norm.*", head) for text in ("--include", pattern)]
    there = ["--format", "huggingface", "--rename-file", str(path_of(other, "huggingface")), *wanted]
    published = tmp_path / "published"
    assert main(["transform", "--source", str(tmp_path / "trained"), "--target", str(published), *there]) == 0
    assert rawfiles.same(read_huggingface(published), {expected[name]: array for name, array in arrays.items()})

    back = ["--format", "torch-dcp", "--target-ranks", "3", "--rename-file", str(path_of("huggingface", other))]
    assert main(["transform", "--source", str(published), "--target", str(tmp_path / "back"), *back]) == 0
    plain = ["--format", "huggingface", "--target", str(tmp_path / "plain")]
    assert main(["transform", "--source", str(tmp_path / "back"), *plain]) == 0
    assert rawfiles.same(read_huggingface(tmp_path / "plain"), arrays)
    assert "to no parameter" not in capsys.readouterr().err


def test_mindformers_to_hugging_face_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = names("mindformers-llama", "huggingface")
    arrays = tensors(expected)
    strategy = tmp_path / "strategy.json"
    write_mindspore(tmp_path / "trained", strategy, arrays)
    published = tmp_path / "published"
    there = ["--source-strategy", str(strategy), "--format", "huggingface", "--include", "model.*", "--include", "lm_head.*"]
    there += ["--rename-file", str(path_of("mindformers-llama", "huggingface"))]
    assert main(["transform", "--source", str(tmp_path / "trained"), "--target", str(published), *there]) == 0
    assert rawfiles.same(read_huggingface(published), {expected[name]: array for name, array in arrays.items()})

    back = ["--target-strategy", str(strategy), "--format", "ckpt", "--allow-missing"]
    back += ["--rename-file", str(path_of("huggingface", "mindformers-llama"))]
    assert main(["transform", "--source", str(published), "--target", str(tmp_path / "back"), *back]) == 0
    for rank in range(2):
        found = rawfiles.read_ckpt((tmp_path / "back" / f"rank_{rank}" / f"checkpoint_{rank}.ckpt").read_bytes())
        assert rawfiles.same(found, {n: a[rank * 4 : rank * 4 + 4] if a.ndim == 2 else a for n, a in arrays.items()})
    assert "to no parameter" not in capsys.readouterr().err


def test_a_refused_model_leaves_no_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama = {name: array for name, array in tensors(names("torchtitan-0.2-qwen3", "huggingface")).items() if "_norm." not in name}
    write_dcp(tmp_path / "llama", llama)
    rules = ["--format", "huggingface", "--rename-file", str(path_of("torchtitan-0.2-qwen3", "huggingface"))]
    assert main(["transform", "--source", str(tmp_path / "llama"), "--target", str(tmp_path / "t"), *rules]) == 66
    assert "RenamedMissing: parameter layers.0.attention.q_norm.weight" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
