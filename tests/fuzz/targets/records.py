"""Fuzz the small documents of an unfinished target: records of tasks and ranks, a commit, and lock files."""

from __future__ import annotations

import json

from targets.manifest import MANIFEST

from reshard.checkpoint.manifest import decode, encode
from reshard.target.lock import LockOwner
from reshard.target.process import ProcessId, has_ended
from reshard.target.snapshot import TaskRecord
from reshard.target.task import RankRecord, _Commit, _FinishedFile

KINDS = (TaskRecord, _FinishedFile, RankRecord, _Commit, LockOwner)
HERE = ProcessId("0" * 12, 1, 2)
RANK = {"task": ".reshard/0", "file": MANIFEST["files"][0]}
DOCUMENTS = (
    {"digest": "0123456789abcdef0", "request": {"output": "PerRank"}, "staged": True, "mode": 420, "keyCheck": "AAAA"},
    RANK,
    RANK | {"losses": {"numbers": "AAAAAA==", "rounded": "AQAAAAAAAAA=", "overflowed": "AAAAAAAAAAA="}},
    {"ranks": "0-3"},
    {"owner": "o", "host": "h", "process": f"{'0' * 12}-12-34--", "shared": True},
)
SEEDS = [bytes([number]) + json.dumps(document).encode() for number, document in enumerate(DOCUMENTS)]


def read(content: bytes) -> None:
    kind = KINDS[content[0] % len(KINDS) if content else 0]
    found = decode(content[1:], kind, "fuzz")
    assert decode(encode(found), kind, "fuzz") == found
    if isinstance(found, LockOwner) and (process := ProcessId.parse(found.process)) is not None:
        assert ProcessId.parse(str(process)) == process
        has_ended(process, HERE, lambda pid: pid)
