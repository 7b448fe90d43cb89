"""A pass over the source that is killed at any moment leaves only temporary files, and is resumed to the same result."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from effort import share
from traffic_cases import made

if TYPE_CHECKING:
    from pathlib import Path

# Kills forked copies of itself before the n-th of these calls, for random n, and lists what they leave.
PROGRAM = """
import json, os, random, signal, sys
from itertools import count
from pathlib import Path

from reshard.spec.request import Request
from reshard.storage.fetched import Fetched
from reshard.storage.local.store import LocalStore
from reshard.storage.local.writer import LocalWriter
from reshard.transform.run import transform_checkpoint

source, before, after, target, cases = sys.argv[1:]
target = Path(target)
calls, limit = count(), [1 << 60]
for owner, name in (
    (LocalWriter, "write"), (LocalWriter, "flush"), (LocalWriter, "_rename"), (LocalStore, "write"), (LocalStore, "open"),
    (Fetched, "__init__"), (Fetched, "close"),
):
    def counted(*arguments, usual=getattr(owner, name), **named):
        if next(calls) >= limit[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(*arguments, **named)
    setattr(owner, name, counted)


def run(folder):
    return transform_checkpoint(Request(source, str(folder), source_strategy=before, target_strategy=after), workers=2)


def forked(work):
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


whole = target / "whole"
assert forked(lambda: (run(whole), (target / "calls").write_text(str(next(calls))))) == 0
total, chosen = int((target / "calls").read_text()), random.Random(1)
expected = {str(p.relative_to(whole)): p.read_bytes() for p in whole.glob("rank_*/*")}
found = []
for number in range(int(cases)):
    folder, limit[0] = target / str(number), chosen.randrange(total)
    killed = forked(lambda: run(folder))
    left = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and ".reshard" not in p.parts}
    partial = [name for name, content in left.items() if expected.get(name, content) != content]
    records = {int(p.stem[5:]) for p in folder.glob(".reshard/*/records/*.json")}
    limit[0] = 1 << 60
    again = forked(lambda: (target / "skipped").write_text(json.dumps(run(folder).skipped_ranks)))
    skipped = json.loads((target / "skipped").read_text())
    content = {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("rank_*/*")}
    state_left = any(p.is_file() for p in (folder / ".reshard").rglob("*"))
    found.append([killed, partial, sorted(records), skipped, again, content == expected, state_left])
print(json.dumps(found))
"""


def test_a_killed_pass_is_resumed(tmp_path: Path) -> None:
    source = made(tmp_path, "mixture")
    (tmp_path / "out").mkdir()
    places = [source.source, source.source_strategy, source.target_strategy, tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, places), str(share(100))], capture_output=True, text=True, check=True
    )
    killed_with_records = 0
    for killed, partial, records, skipped, again, equal, state_left in json.loads(done.stdout):
        assert killed == -9
        assert partial == []
        assert (again, equal, state_left) == (0, True, False)
        assert set(records) <= set(skipped)  # only ranks without a record are written again
        killed_with_records += bool(records)
    assert killed_with_records
