"""Layout files in examples/layouts: each describes every parameter of a small model with the names of its framework."""

from __future__ import annotations

import pytest
from language_models import names
from pages import ROOT

from reshard.errors import RequestError
from reshard.mesh.file import LayoutFile, parse
from reshard.mesh.resolve import Resolved, resolve
from reshard.mesh.sharding import Whole

FILES = ROOT / "examples" / "layouts"
TITAN = ["attention.wq", "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]
# Names in the attention of DeepSeek-V3 that toolkit/weight_convert/deepseekv3 writes, by the version of MindFormers.
MLA = {
    "1.6.0": ["linear_qkv", "linear_qb", "linear_kvb", "linear_proj", "q_layernorm", "k_layernorm"],
    "1.7.0": [
        *("linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj"),
        *("linear_proj", "q_layernorm", "kv_layernorm"),
    ],
}
DEEPSEEK = "mindformers-deepseek-v3.yaml"
DENSE = ["mlp.linear_fc1.weight", "mlp.linear_fc2.weight"]
MOE = ["mlp.router.weight", "mlp.shared_experts.linear_fc1.weight", "mlp.shared_experts.linear_fc2.weight"]
MOE += ["mlp.experts.weight1", "mlp.experts.weight2"]


def deepseek(version: str) -> list[str]:
    """The names of the model without its multi-token prediction: one dense layer, and two with experts."""
    norms = ["input_layernorm.weight", "pre_mlp_layernorm.weight"]
    attention = [f"self_attention.{name}.weight" for name in MLA[version]]
    layers = [f"decoder.layers.{i}.{name}" for i in range(3) for name in [*norms, *attention, *(MOE if i else DENSE)]]
    return ["embedding.word_embeddings.weight", *layers, "decoder.final_layernorm.weight", "output_layer.weight"]


# By file: the names of a small model, and slices along each dimension of some of them.
MODELS: dict[str, tuple[list[str], dict[str, tuple[int, ...]]]] = {
    "mindformers-llama.yaml": (
        [name for name in names("huggingface", "mindformers-llama").values() if not name.endswith("bias")],
        {
            "model.layers.11.attention.wv.weight": (8, 1),
            "model.layers.0.attention.wo.weight": (2, 4),
            "adam_v.model.layers.0.feed_forward.w2.weight": (2, 4),
            "model.tok_embeddings.embedding_weight": (1, 1),
            "lm_head.weight": (8, 1),
            "model.layers.0.ffn_norm.weight": (1,),
        },
    ),
    "mindformers-deepseek-v3.yaml": (
        deepseek("1.6.0"),
        {
            "decoder.layers.0.self_attention.linear_proj.weight": (1, 4),
            "decoder.layers.2.mlp.shared_experts.linear_fc2.weight": (1, 4),
            "adam_m.decoder.layers.2.mlp.experts.weight1": (8, 1),
            "decoder.layers.1.mlp.router.weight": (1, 1),
            "output_layer.weight": (8, 1),
        },
    ),
    "torchtitan-0.2-llama.yaml": (
        [
            *("tok_embeddings.weight", "norm.weight", "output.weight"),
            *(f"layers.{i}.{name}.weight" for i in range(12) for name in (*TITAN, "attention_norm", "ffn_norm")),
        ],
        {
            "layers.11.attention.wq.weight": (8, 1),
            "layers.0.feed_forward.w2.weight": (4, 2),
            "layers.0.ffn_norm.weight": (4,),
            "optimizer.state.tok_embeddings.weight.exp_avg": (8, 1),
        },
    ),
}


def file(name: str) -> LayoutFile:
    return parse((FILES / name).read_bytes(), name)


def resolved(name: str, names: list[str] | None = None) -> Resolved:
    whole = {each: Whole("Float32", (256,) if "norm" in each else (256, 128)) for each in names or MODELS[name][0]}
    document = file(name).document
    states = [state if "*" in state else f"{state}*" for state in document.state]
    whole |= {state.replace("*", each): tensor for state in states for each, tensor in whole.items()}
    return resolve(document, whole, name)


def test_each_file_is_tested_and_listed() -> None:
    assert sorted(path.name for path in FILES.glob("*.yaml")) == sorted(MODELS)
    readme = (FILES / "README.md").read_text()
    assert all(f"]({name})" in readme for name in MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_each_file_states_what_was_proved(name: str) -> None:
    comment = "".join(line for line in (FILES / name).read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "Proved" in comment
    assert "Not proved" in comment


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_layout_and_every_rule_applies(name: str) -> None:
    found = resolved(name)
    assert found.notes == ()
    assert len(found.assigned) == len(MODELS[name][0]) * (1 + len(file(name).document.state))
    layouts = found.strategy.stages[0]
    assert {each: layouts[each].parts for each in MODELS[name][1]} == MODELS[name][1]


@pytest.mark.parametrize(
    ("file_name", "names", "unmatched"),
    [
        ("mindformers-llama.yaml", ["lm_head.weight", "model.layers.0.attention.w_qkv.weight"], ["w_qkv"]),
        (DEEPSEEK, deepseek("1.7.0"), ["linear_kv_down_proj", "linear_kv_up_proj", "linear_q_down_proj", "linear_q_up_proj"]),
        (DEEPSEEK, [*deepseek("1.6.0"), "decoder.layers.1.mlp.router.expert_bias"], ["expert_bias"]),
        (DEEPSEEK, [*deepseek("1.6.0"), "mtp.layers.0.enorm.weight", "mtp.layers.0.eh_proj.weight"], ["eh_proj"]),
    ],
)
def test_names_that_a_file_does_not_describe_are_refused(file_name: str, names: list[str], unmatched: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        resolved(file_name, names)
    assert caught.value.reason == "ParameterUnmatched"
    listed = caught.value.what.removeprefix("no rule matches ").split(", ")
    assert [each.removesuffix(".weight").rpartition(".")[2] for each in listed] == unmatched


def test_the_order_of_axes_applies_to_the_numbers_of_ranks() -> None:
    layouts = resolved("mindformers-deepseek-v3.yaml").strategy.stages[0]
    columns = [column for _, column in layouts["decoder.layers.0.self_attention.linear_proj.weight"].cells]
    assert columns == [0, 0, 1, 1, 2, 2, 3, 3]
    rows = [row for row, _ in layouts["output_layer.weight"].cells]
    assert rows == list(range(8))
