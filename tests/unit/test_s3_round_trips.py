"""The number of requests for many files: a fixed number, one per file whose content is needed, one per listed page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import rawfiles

from reshard.errors import AccessError, LockedError, MissingInputError, RequestError
from reshard.progress import Cancellation
from reshard.spec.request import Options, Request
from reshard.spec.rules import RenameRule
from reshard.storage import open_store
from reshard.transform.checks import open_target
from reshard.transform.complete import commit_checkpoint
from reshard.transform.inputs import Inputs
from reshard.transform.run import transform_checkpoint
from reshard.transform.unchanged import find_complete

if TYPE_CHECKING:
    from pathlib import Path

    import thin_s3

    from reshard.transform.run import Result

KEYS = [f"rank_{number}/x&y <{number}>.ckpt" for number in range(1200)]


def put_all(server: thin_s3.ThinServer, keys: list[str]) -> None:
    for key in keys:
        server.put("bucket", f"a/{key}", b"1")


def test_a_thousand_files_are_deleted_with_one_request(server: thin_s3.ThinServer) -> None:
    put_all(server, [*KEYS, "rank_1", "other"])
    open_store("s3://bucket/a").delete_files([*KEYS, "nothing"])
    assert {key for _, key in server.objects} == {"a/rank_1", "a/other"}
    assert len(server.requests) == 2


def test_a_folder_is_deleted_page_by_page(server: thin_s3.ThinServer) -> None:
    put_all(server, [*(f"rank_1/{key}" for key in KEYS), "rank_1", "rank_10"])
    open_store("s3://bucket/a").delete("rank_1")
    assert {key for _, key in server.objects} == {"a/rank_10"}
    assert len(server.requests) == 5


@pytest.mark.parametrize("refusal", [(501, "NotImplemented"), (400, "InvalidRequest"), (403, "AccessDenied"), (404, "NoSuchKey")])
def test_files_are_deleted_one_by_one_where_a_server_cannot_do_more(server: thin_s3.ThinServer, refusal: thin_s3.Refusal) -> None:
    put_all(server, KEYS[:40])
    server.refuse = lambda request: refusal if request.method == "POST" else None
    store = open_store("s3://bucket/a")
    store.delete_files(KEYS[:20])
    store.delete_files(KEYS[20:40])
    assert server.objects == {}
    assert [request.method for request in server.requests].count("POST") == 1


def test_a_file_that_cannot_be_deleted_is_named(server: thin_s3.ThinServer) -> None:
    put_all(server, KEYS[:40])
    server.refuse = lambda request: (403, "AccessDenied") if request.key == f"a/{KEYS[7]}" else None
    with pytest.raises(AccessError) as caught:
        open_store("s3://bucket/a").delete_files(KEYS[:40])
    assert caught.value.where == f"s3://bucket/a/{KEYS[7]}"
    assert [key for _, key in server.objects] == [f"a/{KEYS[7]}"]


def test_files_that_another_run_has_replaced_are_not_deleted(server: thin_s3.ThinServer) -> None:
    put_all(server, KEYS[:40])
    store = open_store("s3://bucket/a")
    seen = store.stats(KEYS[:39])
    server.put("bucket", f"a/{KEYS[7]}", b"new")
    del server.objects["bucket", f"a/{KEYS[8]}"]
    with pytest.raises(LockedError, match="another run or program has replaced this object") as caught:
        store.delete_files([KEYS[8], KEYS[39], KEYS[7]], seen=seen)
    assert caught.value.where == f"s3://bucket/a/{KEYS[7]}"
    store.delete_files(KEYS[:40], seen={key: stat for key, stat in seen.items() if key != KEYS[7]})
    assert {key for _, key in server.objects} == {f"a/{KEYS[7]}", f"a/{KEYS[39]}"}
    with pytest.raises(LockedError):
        store.move(KEYS[7], "aside", seen=seen[KEYS[7]])
    assert {key for _, key in server.objects} == {f"a/{KEYS[7]}", f"a/{KEYS[39]}"}
    store.move(KEYS[7], "aside", seen=store.stat(KEYS[7]))
    assert {key for _, key in server.objects} == {"a/aside", f"a/{KEYS[39]}"}


@pytest.mark.parametrize("refusal", [(501, "NotImplemented"), (400, "InvalidArgument")])
def test_files_are_deleted_if_a_server_has_no_conditional_deletes(server: thin_s3.ThinServer, refusal: thin_s3.Refusal) -> None:
    put_all(server, KEYS[:2])
    server.refuse = lambda request: refusal if request.method == "DELETE" and "if-match" in request.headers else None
    store = open_store("s3://bucket/a")
    store.delete_files(KEYS[:2], seen=store.stats(KEYS[:2]))
    assert server.objects == {}


@pytest.mark.parametrize("refusal", [(404, "NoSuchKey"), (412, "PreconditionFailed")])
def test_a_delete_whose_answer_was_lost_is_repeated(server: thin_s3.ThinServer, refusal: thin_s3.Refusal) -> None:
    put_all(server, KEYS[:1])

    def lose(request: thin_s3.Request) -> thin_s3.Refusal | None:
        if request.method != "DELETE":
            return None
        return (500, "InternalError") if server.objects.pop((request.bucket, request.key), None) else refusal

    store = open_store("s3://bucket/a")
    seen = store.stats(KEYS[:1])
    server.refuse = lose
    store.delete_files(KEYS[:1], seen=seen)
    assert server.objects == {}


def test_no_object_waits_for_another_round_trip(server: thin_s3.ThinServer) -> None:
    store = open_store("s3://bucket/a")
    store.check_writable()
    store.write("b", b"1", mode=None)
    writer = store.create("c", temporary="", mode=None, size=9 << 20)
    writer.write(bytes(9 << 20))
    writer.finish()
    assert {request.method for request in server.requests} == {"PUT", "POST", "DELETE"}
    assert all("expect" not in request.headers for request in server.requests)


def leave_uploads(server: thin_s3.ThinServer, keys: list[str]) -> None:
    for number, key in enumerate(keys):
        server.uploads[f"left-{number}"] = ("bucket", f"a/{key}", {})


def uploads(server: thin_s3.ThinServer) -> list[str]:
    return sorted(key for _, key, _ in server.uploads.values())


def test_uploads_of_many_files_are_listed_together(server: thin_s3.ThinServer) -> None:
    others = ["rank_1/x", "part0.safetensors", f"{KEYS[3]}.part"]
    leave_uploads(server, [KEYS[3], *others, KEYS[3]])
    open_store("s3://bucket/a").abort_stale_uploads(KEYS, silent=0.0)
    assert uploads(server) == sorted(f"a/{key}" for key in others)
    assert len(server.requests) == 5  # the probe, its abort, the listing, and two that were left


@pytest.mark.parametrize("lacks", ["prefixes", "pages"])
def test_uploads_are_listed_file_by_file_where_a_server_cannot_do_more(server: thin_s3.ThinServer, lacks: str) -> None:
    server.lists_by_prefix, server.longest_page = lacks != "prefixes", 1 if lacks == "pages" else 1000
    leave_uploads(server, [KEYS[3], "other", KEYS[39]])
    open_store("s3://bucket/a").abort_stale_uploads(KEYS[:40], silent=0.0)
    assert uploads(server) == ["a/other"]
    assert len([request for request in server.requests if "uploads" in request.query and request.method == "GET"]) >= 41


def test_uploads_below_a_whole_bucket_are_listed_file_by_file(server: thin_s3.ThinServer) -> None:
    server.uploads["left"] = ("bucket", KEYS[3], {})
    open_store("s3://bucket").abort_stale_uploads(KEYS[:40], silent=0.0)
    assert server.uploads == {}
    assert {request.query["prefix"] for request in server.requests if request.method == "GET"} == set(KEYS[:40])


def test_folders_are_listed_together(server: thin_s3.ThinServer) -> None:
    store, folders = open_store("s3://bucket/a"), [f"rank_{number}" for number in range(100)]
    put_all(server, [f"{folder}/{name}" for folder in folders for name in ("", "x", "y/z", "y", "y/w/v")])
    listed = store.list_folders(folders)
    assert len(server.requests) == 1
    assert listed == [store.list(folder) for folder in folders]
    assert [(each.name, each.is_folder) for each in listed[7]] == [("x", False), ("y", True), ("y", False)]


def test_a_listing_with_too_much_in_between_is_given_up(server: thin_s3.ThinServer) -> None:
    folders = [f"rank_{number}" for number in range(40)]
    server.longest_listing = 100
    put_all(server, [*(f"{folder}/x" for folder in folders), *(f"rank_1/other/{number}" for number in range(1000))])
    store = open_store("s3://bucket/a")
    assert [len(found) for found in store.list_folders(folders)] == [1, 2, *[1] * 38]
    assert len(store.stats([f"{folder}/x" for folder in folders])) == 40
    assert len(server.requests) <= 2 * (9 + 40)


@pytest.mark.parametrize("target", ["s3://bucket/out", "local"])
def test_a_commit_and_a_run_with_nothing_to_do(
    server: thin_s3.ThinServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.chdir(tmp_path)
    counted = {ranks: requests_of(server, ranks, f"{target}-{ranks}") for ranks in (36, 48)}
    commit, again = ((counted[48][step] - counted[36][step]) / 12 for step in ("commit", "again"))
    assert commit <= (1 if target != "local" else 0)  # the record
    assert again == 0
    assert counted[48]["again"] < 25
    assert counted[48]["commit"] < 48 + 46


def requests_of(server: thin_s3.ThinServer, ranks: int, target: str) -> dict[str, int]:
    """The requests that a commit takes, and a run after it."""
    for rank in range(ranks):
        server.put("bucket", f"src-{ranks}/rank_{rank}/net-1_100.ckpt", rawfiles.ckpt({"w": np.full(4, rank, np.int8)}))
    request = Request(f"s3://bucket/src-{ranks}", target, options=Options(output="Same"))
    transform_checkpoint(request, workers=8, commit=False)
    counted = {}
    for name, act in (("commit", lambda: commit_checkpoint(target)), ("again", lambda: transform_checkpoint(request, workers=8))):
        before = len(server.requests)
        act()
        counted[name] = len(server.requests) - before
    return counted


# A run that finds everything done by listings reads no file of the source; otherwise it reads their headers.

RULE = RenameRule(to="v*", pattern="absent*")


@pytest.fixture
def done(server: thin_s3.ThinServer) -> Request:
    """Return a request that was executed."""
    for rank in range(4):
        put_rank(server, rank, rank)
    request = Request("s3://bucket/src", "s3://bucket/out", options=Options(output="Same", rename=(RULE,)))
    transform_checkpoint(request, workers=1)
    return request


def put_rank(server: thin_s3.ThinServer, rank: int, value: int, step: int = 100) -> None:
    server.put("bucket", f"src/rank_{rank}/net-1_{step}.ckpt", rawfiles.ckpt({"w": np.full(4, value, np.int8)}))


def run_again(server: thin_s3.ThinServer, request: Request) -> tuple[Result, bool]:
    """Run a transform; its result, and whether it has read a file of the source."""
    before = len(server.requests)
    result = transform_checkpoint(request, workers=1)
    read = any(asked.method == "GET" and asked.key.startswith("src/") for asked in server.requests[before:])
    return result, read


def test_a_run_with_nothing_to_do_reports_what_the_first_did(server: thin_s3.ThinServer, done: Request) -> None:
    forced = msgspec.structs.replace(done, target="s3://bucket/again")
    first = transform_checkpoint(forced, workers=1)
    result, read = run_again(server, forced)
    assert not read
    assert first.notes == result.notes == ("the rename rule for absent* applies to no parameter",)
    for name in ("source_ranks", "target_ranks", "parameters", "digest", "complete", "committed_ranks", "stage"):
        assert getattr(result, name) == getattr(first, name), name
    assert (result.bytes_fetched, result.bytes_written, result.skipped_ranks) == (0, 0, (0, 1, 2, 3))


def test_ranks_of_a_complete_checkpoint_are_not_written_again(server: thin_s3.ThinServer, done: Request) -> None:
    options = msgspec.structs.replace(done.options, only_ranks="1-2")
    result, read = run_again(server, msgspec.structs.replace(done, options=options))
    assert (read, result.skipped_ranks, result.bytes_written) == (False, (1, 2), 0)


@pytest.mark.parametrize("change", ["content", "step", "gone", "renamed"])
def test_another_source_is_not_mistaken_for_the_one_that_was_read(server: thin_s3.ThinServer, done: Request, change: str) -> None:
    if change == "content":
        put_rank(server, 2, 9)
    elif change == "step":
        for rank in range(4):
            put_rank(server, rank, rank, step=200)
    elif change == "gone":
        del server.objects["bucket", "src/rank_3/net-1_100.ckpt"]
    else:
        for rank in range(4):
            content = server.objects.pop(("bucket", f"src/rank_{rank}/net-1_100.ckpt")).content
            server.put("bucket", f"src/rank_{rank}/net-2_100.ckpt", content)
    with pytest.raises(RequestError) as caught:
        transform_checkpoint(done, workers=1)
    assert caught.value.reason == "TargetExists"


@pytest.mark.parametrize("changed", [{"crc": True}, {"rename": ()}, {"format": "Safetensors"}, {"allow_missing": True}])
def test_another_request_is_not_mistaken_for_the_complete_one(done: Request, changed: dict[str, Any]) -> None:
    other = msgspec.structs.replace(done, options=msgspec.structs.replace(done.options, **changed))
    with pytest.raises(RequestError) as caught:
        transform_checkpoint(other, workers=1)
    assert caught.value.reason == "TargetExists"


def test_a_stricter_verification_is_run(server: thin_s3.ThinServer, done: Request) -> None:
    options = msgspec.structs.replace(done.options, verification="Full")
    result, read = run_again(server, msgspec.structs.replace(done, options=options))
    assert read
    assert result.bytes_written > 0
    result, read = run_again(server, msgspec.structs.replace(done, options=options))
    assert not read


def test_a_missing_file_of_the_target_is_written_again(server: thin_s3.ThinServer, done: Request) -> None:
    key = ("bucket", "out/rank_2/net-1_100.ckpt")
    content = server.objects.pop(key).content
    assert run_again(server, done)[1]
    assert server.objects[key].content == content


def test_overwrite_finds_damage_at_the_target(server: thin_s3.ThinServer, done: Request) -> None:
    key = ("bucket", "out/rank_2/net-1_100.ckpt")
    content = server.objects[key].content
    server.put(*key, content[:-1] + b"?")
    options = msgspec.structs.replace(done.options, overwrite="Replace")
    assert run_again(server, msgspec.structs.replace(done, options=options))[1]
    assert server.objects[key].content == content


@pytest.mark.parametrize("change", ["content", "version"])
def test_a_commit_compares_the_versions_of_objects(server: thin_s3.ThinServer, change: str) -> None:
    """The listing contains the versions; blocks of an object with another version, such as a copy, are compared."""
    for rank in range(4):
        put_rank(server, rank, rank)
    request = Request("s3://bucket/src", "s3://bucket/out", options=Options(output="Same"))
    transform_checkpoint(request, workers=1, commit=False)
    key = ("bucket", "out/rank_2/net-1_100.ckpt")
    found = server.objects[key]
    if change == "version":
        server.objects[key] = replace(found, etag='"another"')
        assert commit_checkpoint("s3://bucket/out").ranks == "0-3"
        return
    server.put(*key, found.content[:-1] + b"?")
    with pytest.raises(MissingInputError, match=r"RanksUnfinished.*1 of 4 ranks.*: 2;"):
        commit_checkpoint("s3://bucket/out")
    server.objects[key] = found
    assert commit_checkpoint("s3://bucket/out").ranks == "0-3"


def test_times_of_a_folder_prove_nothing(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / "src" / f"rank_{rank}").mkdir(parents=True)
        (tmp_path / "src" / f"rank_{rank}" / "net-1_100.ckpt").write_bytes(rawfiles.ckpt({"w": np.zeros(4, np.int8)}))
    request = Request(str(tmp_path / "src"), str(tmp_path / "out"), options=Options(output="Same"))
    transform_checkpoint(request, workers=1)
    inputs = Inputs(request)
    assert find_complete(inputs, open_target(inputs), Cancellation(), thorough=False) is None
