"""Keys: their sources, transforms with them, and no output that shows them."""

from __future__ import annotations

import base64
import os
import pickle
from typing import TYPE_CHECKING, Any

import disk
import msgspec
import pytest
import rawfiles

from reshard import Encryption, Key, Options, Request, load, plan_transform, transform_checkpoint
from reshard.cli import main
from reshard.errors import AccessError, MissingInputError, ReshardError, UsageError
from reshard.source.keys import read_key
from reshard.spec.keys import KEY_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from reshard.spec.keys import Mode

MODES = list(KEY_BYTES)
KEY, OTHER = b"a key, no poetry", b"another key, too"


@pytest.mark.parametrize("how", ["bytes", "file", "variable"])
@pytest.mark.parametrize(
    ("mode", "content", "found"),
    [
        ("AES-GCM", b"k" * 32, b"k" * 32),
        ("AES-CBC", b"k" * 24 + b"\n", b"k" * 24),
        ("SM4-CBC", b"k" * 15 + b"\n", b"k" * 15 + b"\n"),  # it is long enough only with it
        ("SM4-CBC", b"k" * 24, None),
        ("AES-GCM", b"k" * 16 + b"\n\n", None),
        ("AES-GCM", b"k" * 16 + b" ", None),
        ("AES-GCM", b"", None),
        ("AES-GCM", b"k" * 4096, None),
    ],
)
def test_a_key_is_its_bytes(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, how: str, mode: Mode, content: bytes, found: bytes | None
) -> None:
    (tmp_path / "k").write_bytes(content)
    monkeypatch.setitem(os.environb, b"THE_KEY", content)
    key = {"bytes": Key(content), "file": Key(file=str(tmp_path / "k")), "variable": Key(variable="THE_KEY")}[how]
    if found is not None:
        assert read_key(Encryption(key, mode)) == found
        return
    with pytest.raises(ReshardError) as caught:
        read_key(Encryption(key, mode))
    assert caught.value.reason == "InvalidKey"
    assert "kkkk" not in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    for key, said in ((Key(file=str(tmp_path / "k")), str(tmp_path)), (Key(variable="NO_KEY"), "environment variable NO_KEY")):
        with pytest.raises(MissingInputError, match=said):
            read_key(Encryption(key))
    for wrong in ({}, {"content": KEY, "file": "k"}, {"content": "text"}):
        with pytest.raises(UsageError, match="InvalidKey"):
            Key(**wrong)


def test_no_output_contains_a_key() -> None:
    request = Request("a", "b", decryption=Encryption(Key(KEY)), encryption=Encryption(Key(file="/k"), "SM4-CBC"))
    assert KEY.decode() not in repr(request)
    assert "Key(file='/k')" in repr(request)
    for write in (msgspec.json.encode, msgspec.to_builtins, pickle.dumps):
        with pytest.raises(TypeError):
            write(request)
    with pytest.raises(UsageError) as caught:
        Request("a", "b", decryption=KEY)
    assert KEY.decode() not in str(caught.value)


@pytest.fixture
def made(tmp_path: Path) -> disk.Checkpoint:
    """Return a source, with the files of both keys next to it."""
    (tmp_path / "key").write_bytes(KEY + b"\n")
    (tmp_path / "other").write_bytes(OTHER)
    return disk.write(tmp_path / "in", disk.example())


def encrypt(made: disk.Checkpoint, mode: str) -> None:
    for path in made.source.rglob("*.ckpt"):
        path.write_bytes(rawfiles.encrypted(path.read_bytes(), mode, KEY, 300))


@pytest.mark.parametrize("mode", MODES)
def test_from_one_key_to_another(
    made: disk.Checkpoint, tmp_path: Path, mode: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environb, b"OTHER_KEY", OTHER)
    encrypt(made, mode)
    target = tmp_path / "out"
    source = ["--decryption-key-file", str(tmp_path / "key"), "--decryption-mode", mode]
    keys = [*source, "--encryption-key-env", "OTHER_KEY"]
    assert main(["--log-level", "debug", *made.arguments(target, *keys, "--verification", "full", "--crc")]) == 0
    assert main(["verify", str(target)]) == 0
    assert main(["inspect", str(target), "--decryption-key-file", str(tmp_path / "other")]) == 0
    said = capfd.readouterr()
    written = [path.read_bytes() for path in target.rglob("*") if path.is_file()]
    for secret in (KEY, OTHER):
        for form in (secret, secret.hex().encode(), base64.b64encode(secret)):
            assert not any(form in text for text in [*written, said.out.encode(), said.err.encode()])
    for path in target.rglob("*.ckpt"):
        path.write_bytes(rawfiles.decrypted(path.read_bytes(), "AES-GCM", OTHER))
    assert disk.differences(made.model, target, "ckpt") == []


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_key_leaves_no_trace(
    made: disk.Checkpoint, tmp_path: Path, mode: Mode, capsys: pytest.CaptureFixture[str]
) -> None:
    encrypt(made, mode)
    keys = ["--decryption-mode", mode, "--decryption-key-file", str(tmp_path / "other")]
    assert main(made.arguments(tmp_path / "out", *keys)) == 77
    assert "WrongKey" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def request(made: disk.Checkpoint, target: Path, key: bytes, **options: Any) -> Request:
    return Request(
        source=str(made.source),
        source_strategy=str(made.source_strategy),
        target=str(target),
        target_strategy=str(made.target_strategy),
        options=Options(**options),
        decryption=Encryption(Key(key)),
    )


def test_ranks_find_the_blocks_in_the_plan_and_another_key_by_themselves(
    made: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encrypt(made, "AES-GCM")
    plan_transform(request(made, tmp_path / "out", KEY), write=True)
    monkeypatch.setattr("reshard.source.encrypted.read_table", lambda *_: pytest.fail("a rank looks for the blocks again"))
    with pytest.raises(AccessError, match="WrongKey"):
        transform_checkpoint(request(made, tmp_path / "out", OTHER, only_ranks="0"), commit=False)
    transform_checkpoint(request(made, tmp_path / "out", KEY), commit=False)
    assert disk.differences(made.model, tmp_path / "out", "ckpt") == []


def test_an_index_locates_encrypted_blocks(made: disk.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encrypt(made, "AES-GCM")
    transform_checkpoint(request(made, tmp_path / "index", KEY, output="Index"))
    monkeypatch.setattr("reshard.source.encrypted.read_table", lambda *_: pytest.fail("a rank looks for the blocks again"))
    for rank in range(made.model.target_ranks):
        found = load(str(made.source), rank=rank, index=str(tmp_path / "index"), decryption=Encryption(Key(KEY)))
        assert rawfiles.same(found, made.model.target(rank))
    with pytest.raises(AccessError, match="WrongKey"):
        load(str(made.source), index=str(tmp_path / "index"), decryption=Encryption(Key(OTHER)))
    monkeypatch.undo()
    with pytest.raises(ReshardError, match="CannotEncrypt"):
        transform_checkpoint(
            msgspec.structs.replace(request(made, tmp_path / "x", KEY, output="Index"), encryption=Encryption(Key(KEY)))
        )


def test_a_file_that_was_encrypted_again_is_not_reported_as_a_wrong_key(made: disk.Checkpoint, tmp_path: Path) -> None:
    encrypt(made, "AES-GCM")
    plan_transform(request(made, tmp_path / "out", KEY), write=True)
    changed = next(made.source.rglob("*.ckpt"))
    changed.write_bytes(rawfiles.encrypted(rawfiles.decrypted(changed.read_bytes(), "AES-GCM", KEY), "AES-GCM", KEY, 200))
    transform_checkpoint(request(made, tmp_path / "out", KEY), commit=False)
    assert transform_checkpoint(request(made, tmp_path / "out", KEY)).complete


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--encryption-key-file", "KEY", "--format", "safetensors"], "CannotEncrypt"),
        (["--encryption-key-file", "KEY", "--output", "stage"], "CannotEncrypt"),
        (["--encryption-key-file", "KEY", "--output", "index"], "CannotEncrypt"),
        (["--encryption-key-file", "KEY", "--encryption-key-env", "HOME"], "InvalidKey"),
        (["--encryption-key-file", "/dev/null"], "InvalidKey"),
        (["--encryption-key-env", "NO_KEY"], "KeyMissing"),
        (["--decryption-key-file", "KEY"], "NotEncrypted"),
    ],
)
def test_refused_requests_leave_no_trace(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    given = [str(tmp_path / "key") if word == "KEY" else word for word in arguments]
    assert main(made.arguments(tmp_path / "out", *given)) != 0
    assert f"reshard: {reason}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_conversion_decrypts_and_encrypts(made: disk.Checkpoint, tmp_path: Path) -> None:
    before = {path.relative_to(made.source): path.read_bytes() for path in made.source.rglob("*.ckpt")}
    encrypt(made, "AES-CBC")
    keys = ["--decryption-key-file", str(tmp_path / "key"), "--decryption-mode", "AES-CBC"]
    arguments = ["--source", str(made.source), *keys, "--output", "same", "--verification", "full"]
    assert main(["transform", *arguments, "--target", str(tmp_path / "plain")]) == 0
    sealed = ["--target", str(tmp_path / "other-key"), "--encryption-key-file", str(tmp_path / "other")]
    assert main(["transform", *arguments, *sealed]) == 0
    for path, content in before.items():
        assert (tmp_path / "plain" / path).read_bytes() == content
        assert rawfiles.decrypted((tmp_path / "other-key" / path).read_bytes(), "AES-GCM", OTHER) == content


def test_a_mode_is_part_of_the_job_and_a_key_is_not(made: disk.Checkpoint, tmp_path: Path) -> None:
    def digest(encryption: Encryption | None) -> str:
        plain = Request(str(made.source), str(tmp_path / "out"), options=Options(step=100), encryption=encryption)
        return plan_transform(msgspec.structs.replace(plain, source_strategy=str(made.source_strategy))).digest

    found = [digest(e) for e in (None, Encryption(Key(KEY)), Encryption(Key(OTHER)), Encryption(Key(KEY), "AES-CBC"))]
    assert found[1] == found[2]
    assert len({found[0], found[1], found[3]}) == 3


@pytest.mark.parametrize("kind", ["decryption", "encryption"])
def test_a_mode_without_a_key_writes_nothing_plain(
    made: disk.Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    sides = ["--source", str(made.source), "--source-strategy", str(made.source_strategy)]
    assert main(["transform", *sides, "--target", str(tmp_path / "t"), f"--{kind}-mode", "SM4-CBC"]) == UsageError.exit_code
    assert f"InvalidKey: --{kind}-mode" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()
