"""Threads that read documents of the same kind for the first time at the same moment, as those that read the records of ranks."""

from __future__ import annotations

import subprocess
import sys

# The first use of a kind takes a moment, so there are many kinds, and threads take turns as often as they can.
PROGRAM = """
from __future__ import annotations
import sys, threading
import msgspec
from reshard.checkpoint.manifest import FileRecord, LinkRecord, decode, encode

sys.setswitchinterval(1e-7)
found = []
for number in range(100):
    class Inner(msgspec.Struct):
        numbers: tuple[int, ...] = ()
        names: dict[str, int] = {}
        link: LinkRecord | None = None

    class Kind(msgspec.Struct):
        a: Inner | None = None
        b: tuple[Inner, ...] = ()
        c: dict[str, tuple[int, ...]] = {}
        d: FileRecord | None = None
        e: int = 0

    content = encode(Kind(Inner((1,)), (Inner(),), {"x": (1, 2)}, None, number))
    barrier = threading.Barrier(6)

    def read():
        barrier.wait()
        found.append(decode(content, Kind, "here").e)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
assert found == [number for number in range(100) for _ in range(6)], found
"""


def test_threads_read_documents_of_a_new_kind() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
