"""Output formats of other packages: found by their entry points, and selected by their names like Reshard's own."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint, EntryPoints
from textwrap import dedent
from typing import TYPE_CHECKING

import disk
import pytest
import yaml
from safetensors.numpy import load_file

from reshard.checkpoint.manifest import FileRecord, decode, encode
from reshard.cli import main
from reshard.errors import DataError, RequestError, UsageError
from reshard.formats.registry import OUTPUT_GROUP, added_outputs, output_format
from reshard.spec.request import FORMATS, Options, Request
from reshard.spec.resource import parse_spec
from reshard.transform.run import transform_checkpoint
from reshard.transform.verify import verify_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from reshard.checkpoint.output import OutputFile

# A file is a line of JSON and the contents. `index.toy` names the file of each tensor.
TOY = """
    import json

    from reshard.checkpoint.inventory import TensorEntry
    from reshard.checkpoint.output import OutputDefaults, Span


    class Toy(OutputDefaults):
        name = "toy"
        outputs = ("Unified",)
        crc = None
        names_files = True
        document_names = ("index.toy",)

        def path(self, rank, ranks, stem):
            return f"{rank}-of-{ranks}.toy"

        def can_hold(self, tensor):
            return True

        def content_order(self, tensors):
            return range(len(tensors))

        def pieces(self, tensors, metadata, crc=None):
            yield self._head(tensors)
            for number, tensor in enumerate(tensors):
                yield Span(number, 0, tensor.nbytes)

        def file_size(self, tensors, metadata, *, crc=False):
            return len(self._head(tensors)) + sum(tensor.nbytes for tensor in tensors)

        def entries(self, reader, tensors, seen=None):
            tensors = list(tensors)
            at, found = len(self._head(tensors)), []
            for tensor in tensors:
                found.append(TensorEntry(tensor.name, tensor.dtype, tensor.shape, ((at, tensor.nbytes),)))
                at += tensor.nbytes
            return tuple(found)

        def documents(self, files):
            return {"index.toy": json.dumps({t.name: file.path for file in files for t in file.tensors}).encode()}

        def _head(self, tensors):
            return json.dumps([[t.name, t.dtype, list(t.shape), t.nbytes] for t in tensors]).encode() + b"\\n"


    TOY = Toy()
"""


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "packages"
    about = folder / "toy_format-1.dist-info"
    about.mkdir(parents=True)
    (folder / "toy_format.py").write_text(dedent(TOY))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-format\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[reshard.output_formats]\ntoy = toy_format:TOY\n")
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("toy_format", None)


def whole_tensors(made: disk.Checkpoint) -> dict[str, bytes]:
    return {tensor.name: made.model.whole(tensor).tobytes() for tensor in made.model.tensors}


def read_toy(folder: Path) -> dict[str, bytes]:
    found = {}
    for name, path in json.loads((folder / "index.toy").read_text()).items():
        head, _, rest = (folder / path).read_bytes().partition(b"\n")
        at = 0
        for tensor, _, _, nbytes in json.loads(head):
            if tensor == name:
                found[name] = rest[at : at + nbytes]
            at += nbytes
    return found


@pytest.mark.usefixtures("_installed")
def test_a_format_of_another_package_is_written_and_verified(made: disk.Checkpoint, tmp_path: Path) -> None:
    source = ["--source", str(made.source), "--source-strategy", str(made.source_strategy)]
    arguments = ["transform", *source, "--target", str(tmp_path / "out"), "--format", "toy", "--max-file-size-bytes", "1024"]
    assert main(arguments) == 0
    assert read_toy(tmp_path / "out") == whole_tensors(made)
    manifest = verify_checkpoint(str(tmp_path / "out")).manifest
    assert (manifest.format, manifest.options["format"], manifest.options["output"]) == ("toy", "toy", "Unified")
    assert main(arguments) == 0  # nothing to do
    (tmp_path / "out" / "index.toy").unlink()
    assert main(["verify", str(tmp_path / "out")]) != 0


@pytest.mark.usefixtures("_installed")
def test_a_format_of_another_package_is_selected_by_its_name_everywhere(made: disk.Checkpoint, tmp_path: Path) -> None:
    assert added_outputs() == ("toy",)
    storage = {"persistentVolumeClaim": {"claimName": "a"}}
    spec = {"source": {"storage": storage}, "target": {"storage": storage, "format": "toy"}}
    assert parse_spec(yaml.safe_load(yaml.safe_dump(spec)), "x").target.format == "toy"
    request = Request(str(made.source), str(tmp_path / "out"), str(made.source_strategy), options=Options(format="toy"))
    assert transform_checkpoint(request).complete
    assert read_toy(tmp_path / "out") == whole_tensors(made)


@pytest.mark.usefixtures("_installed")
def test_options_that_a_format_of_another_package_lacks_are_refused(made: disk.Checkpoint, tmp_path: Path) -> None:
    for options, said in (
        (Options(format="toy", output="Stage"), "the output Stage does not apply to the format toy"),
        (Options(format="toy", crc=True), "crc: it does not apply to the format toy"),
        (Options(format="toy", copy_settings=True), "copy_settings: it does not apply"),
    ):
        with pytest.raises(UsageError, match=said):
            transform_checkpoint(Request(str(made.source), str(tmp_path / "out"), str(made.source_strategy), options=options))


@pytest.mark.usefixtures("_installed")
def test_an_unknown_format_is_refused_with_all_names(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = Request(str(made.source), str(tmp_path / "out"), options=Options(format="toys"))
    with pytest.raises(RequestError, match=r"UnknownFormat: .*toys is not .*; use one of these: Ckpt, .*TorchSafetensors, toy$"):
        transform_checkpoint(request)
    capsys.readouterr()
    assert main(["transform", "--source", str(made.source), "--target", str(tmp_path / "out"), "--format", "toys"]) == 2
    assert "'safetensors', 'huggingface', 'torch-dcp', 'torch-safetensors', 'megatron', 'toy'" in capsys.readouterr().err
    with pytest.raises(UsageError, match="InvalidOption: format: 'Toy'"):
        Options(format="Toy")


def test_a_package_that_cannot_be_imported_is_named(
    made: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    entry = EntryPoint("toy", "toy_that_is_not_installed:TOY", OUTPUT_GROUP)
    monkeypatch.setattr("importlib.metadata.entry_points", EntryPoints([entry]).select)
    arguments = ["--source", str(made.source), "--target", str(tmp_path / "out"), "--format", "toy"]
    assert "No module named 'toy_that_is_not_installed'" in refused(78, "FormatBroken", "transform", *arguments)


def test_documents_of_ranks_without_redundancy_list_what_they_write(
    made: disk.Checkpoint, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def documents(_: object, files: Iterable[OutputFile]) -> dict[str, bytes]:
        return {"index.json": json.dumps({file.path: [tensor.name for tensor in file.tensors] for file in files}).encode()}

    usual = type(output_format("Safetensors"))
    monkeypatch.setattr(usual, "document_names", ("index.json",))
    monkeypatch.setattr(usual, "documents", documents)
    assert disk.run(made, target, "--format", "safetensors", "--remove-redundancy") == 0
    listed = json.loads((target / "index.json").read_text())
    assert len(listed) > 1
    assert {path: {*load_file(target / path)} for path in listed} == {path: {*names} for path, names in listed.items()}


def test_the_values_of_the_option_are_the_registered_formats() -> None:
    for value in FORMATS[1:]:
        assert output_format(value).outputs


@pytest.mark.parametrize(
    "path", ["a.json", "reshard-manifest.json", ".a.toy", "a", "a/b.toy", "../a.toy", "a.b/../c.toy", "rank_0/.."]
)
def test_a_record_names_files_of_a_checkpoint_only(path: str) -> None:
    record = encode(FileRecord(0, "0-of-1.toy", 1, "", 1, 1, 0, "Full"))
    assert decode(record, FileRecord, "x").path == "0-of-1.toy"
    with pytest.raises(DataError, match="DocumentInvalid"):
        decode(record.replace(b"0-of-1.toy", path.encode()), FileRecord, "x")
