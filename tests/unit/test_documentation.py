"""The documentation: its commands run, its examples are right, its links work."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from itertools import product, takewhile
from pathlib import Path

import msgspec
import pytest
from language_models import names, tensors, write_dcp, write_mindspore
from pages import PAGES, ROOT, blocks

from reshard.checkpoint.inventory import Inventory, Structure, TensorEntry
from reshard.checkpoint.manifest import FileRecord, KindRecord, Manifest, ParameterRecord, ParameterTable, StageRecord
from reshard.cli import main
from reshard.engine.memory import memory_bytes
from reshard.layout import Layout
from reshard.plan import Model
from reshard.spec.layout import Derivation, LayoutDocument, LayoutRule, Pipeline, Zero
from reshard.spec.resource import parse_resource
from reshard.storage.local import LocalStore

OPERATIONS = ROOT / "docs" / "operations.md"
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]+)?\)")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the documentation assumes it, and the current one."""
    folder = tmp_path / "work"
    corpus = ROOT / "tests" / "conformance" / "corpus"
    shutil.copytree(corpus / "src_checkpoints", folder / "src_checkpoints")
    shutil.copy(corpus / "src_strategy.ckpt", folder)
    shutil.copy(corpus / "dst_strategy_4.ckpt", folder / "dst_strategy.ckpt")
    shutil.copy(corpus / "training" / "predict_strategy.ckpt", folder)
    pipeline = corpus / "pipeline"
    shutil.copytree(pipeline / "src", folder / "src_checkpoints_pipeline")
    shutil.copy(pipeline / "dst_strategy.ckpt", folder / "dst_strategy_pipeline.ckpt")
    (folder / "src_pipeline_strategys").mkdir()
    for rank in range(8):  # each has written its own
        name = f"src_strategy_{rank}.ckpt"
        shutil.copy(pipeline / "src_strategy" / f"stage_{rank // 4}.ckpt", folder / "src_pipeline_strategys" / name)
    resource = (ROOT / "examples" / "retrain-on-4.yaml").read_text()
    resource = resource.replace("claimName: results", "claimName: checkpoints").replace("dst_strategy_4", "dst_strategy")
    (folder / "transform.yaml").write_text(resource)
    (folder / "group_info.pb").write_bytes(b"\x12\x04\x08\x00\x08\x02")
    (folder / "training.key").write_bytes(bytes(range(32)))
    shutil.copytree(ROOT / "tests/unit/data/torch/fsdp2", folder / "step_1000", ignore=shutil.ignore_patterns("expected.json"))
    shutil.copytree(ROOT / "examples" / "renames", folder / "examples" / "renames")
    write_dcp(folder / "outputs" / "checkpoint" / "step-1000", tensors(names("torchtitan-qwen3", "huggingface", 2)))
    write_mindspore(
        folder / "llama_checkpoints", folder / "llama_strategy.ckpt", tensors(names("mindformers-llama", "huggingface", 2))
    )
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_the_documentation_run(page: Path, workplace: Path) -> None:
    write_layout_files(page, workplace)
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "reshard"
            assert main(arguments) == 0, line
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})  # noqa: S102 - the documentation's own
    assert workplace == Path.cwd()


def write_layout_files(page: Path, folder: Path) -> None:
    """Write the layout files of a page under the names in their first lines, and its LLaMA, as `make demo` does."""
    layouts = [block for block in blocks(page, "yaml") if "reshard.dev/layout-v1" in block]
    for block in layouts:
        (folder / block.splitlines()[0].removeprefix("# ")).write_text(block)
    if layouts:
        runpy.run_path(str(ROOT / "examples" / "llama.py"))["main"](folder)


@pytest.mark.parametrize("kind", [LayoutDocument, LayoutRule, Pipeline, Zero, Derivation])
def test_every_field_of_a_layout_file_is_described(kind: type) -> None:
    page = (ROOT / "docs" / "layout-files.md").read_text()
    table = {
        LayoutDocument: "## Fields",
        LayoutRule: "Fields of a rule:",
        Pipeline: "Fields of `pipeline`:",
        Zero: "Fields of `zero`:",
        Derivation: "Fields of `derive`:",
    }[kind]
    lines = page.partition(f"\n{table}\n")[2].partition("\nFields of")[0].splitlines()
    described = {line.split("`")[1] for line in lines if line.startswith("| `") and "](errors" not in line}
    assert described == {field.encode_name for field in msgspec.structs.fields(kind)}


@pytest.mark.usefixtures("workplace")
def test_the_output_of_the_example_is_real(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "README.md").read_text()
    ((commands, output),) = re.findall(r"```sh\n(.*?)```\n\n```\n(.*?)```", page, re.DOTALL)
    for line in commands.splitlines():
        assert main(shlex.split(line)[1:]) == 0
    measured = re.compile(r"[\d.]+ s \([\d.]+ [MG]B/s\)(, [\d.]+ MB memory)?")
    assert measured.sub("", output) == measured.sub("", capsys.readouterr().out)


def test_the_error_of_the_example_is_real(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / "docs" / "get-started.md"
    shutil.rmtree(workplace / "src_checkpoints" / "rank_5")
    (transform,) = re.findall(r"^reshard transform .*", "".join(blocks(page, "sh")), re.MULTILINE)
    assert main(shlex.split(transform)[1:]) != 0
    (error,) = re.findall(r"^reshard: .*", page.read_text(), re.MULTILINE)
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_documentation_work(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text()):
        if "://" in target:
            continue
        path = page.parent / target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}


def test_the_site_has_every_page() -> None:
    pages = {path.relative_to(ROOT).as_posix() for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern)}
    listed = set(re.findall(r"\S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert sorted(pages - listed) == [], "add the page to `nav` in mkdocs.yml"


def test_the_table_of_layouts_is_right() -> None:
    rows = [line.split("|")[1:-1] for line in (ROOT / "docs" / "layouts.md").read_text().splitlines() if line.startswith("| `[")]
    assert len(rows) == 5
    for matrix, tensor_map, size, said in rows:
        layout = Layout(tuple(_numbers(matrix)), tuple((n,) for n in _numbers(tensor_map)), int(bool(int(size))), int(size))
        step = 0
        if int(size):
            group = next(iter(Layout(layout.device_matrix, layout.tensor_map).holders.values()))
            step = group[1] - group[0]
        layout = Layout(layout.device_matrix, layout.tensor_map, step, int(size))
        boxes = [layout.box((8,), rank) for rank in range(8)]
        texts = [f"{b.start[0]}-{b.start[0] + b.shape[0] - 1}" if b.shape[0] > 1 else str(b.start[0]) for b in boxes]
        if "on ranks" in said:
            assert texts == ["0-3"] * 4 + ["4-7"] * 4
        else:
            assert said.strip() == "rows " + ", ".join(texts)


def test_the_modules_of_the_architecture_exist() -> None:
    _, _, text = (ROOT / "docs" / "architecture.md").read_text().partition("```\nconverter_image/reshard/\n")
    folders = [ROOT / "converter_image" / "reshard"]
    for line in text.partition("operator/")[0].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = list(takewhile(lambda word: word.endswith((".py", "/")), line.split()))
        assert [name for name in names if not (folders[depth - 1] / name).exists()] == [], line
        folders[depth:] = [folders[depth - 1] / names[0]]


def test_the_picture_is_the_output_of_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "pictures.md"
    command = next(line for line in blocks(page, "console")[0].splitlines() if line.startswith("reshard plan"))
    *_, kept = arguments = shlex.split(command)[1:]
    monkeypatch.chdir(ROOT)
    assert main([*arguments[:-1], str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (ROOT / kept).read_bytes(), command


def test_every_field_of_the_manifest_is_described() -> None:
    page = (ROOT / "docs" / "manifest.md").read_text()
    for kind in (Manifest, FileRecord, ParameterTable, ParameterRecord, KindRecord, StageRecord):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.encode_name}`" in page


def test_every_module_has_its_place_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "converter_image" / "reshard"
    for path in package.iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        if not name.startswith("_") and name != "py.typed":
            assert re.search(rf"(^|\s){re.escape(name)}", page), name


def test_examples_are_valid_resources(workplace: Path) -> None:
    for example in (ROOT / "examples").glob("*.yaml"):
        assert main(["run", str(example), "--volume", f"checkpoints={workplace}"]) == 2  # the other claim has no folder
    assert any(workplace.iterdir())


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


@pytest.mark.parametrize("page", ["api", "cli"])
def test_generated_references_are_current(page: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / f"{page}_reference.py"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / f"{page}.md").read_text() == done.stdout, "run make docs"


def most_memory(parameters: int, ranks: int = 1) -> str:
    entries = (TensorEntry("n" * 50, "Float32", (), ()),) * parameters
    model = Model(Inventory((), (Structure("safetensors", entries),)), 1, 1, 100, 1, ())
    local = LocalStore("/")
    return f"{memory_bytes(model, ranks, local, local, ()) / 1e6:.0f} MB"


def test_the_sizing_tables_are_right() -> None:
    page = OPERATIONS.read_text()
    for parameters, ranks in ((100, 1), (1000, 1), (10_000, 1), (1000, 8)):
        assert f"| {parameters:,} | {ranks} | {most_memory(parameters, ranks)} |\n" in page
    for gigabytes, ranks in product((1, 10, 50), (1, 8)):
        seconds = " | ".join(f"{ranks * gigabytes / throughput:g} s" for throughput in (0.5, 1, 2))
        assert f"| {gigabytes} GB | {most_memory(1000)} | {ranks} | {seconds} |\n" in page


def test_the_resource_in_the_documentation_is_valid() -> None:
    for page in PAGES:
        for block in blocks(page, "yaml"):
            if "kind: CheckpointTransform" in block:
                parse_resource(block, page.name)
