"""Classes of documents, as msgspec examines them."""

from __future__ import annotations

import subprocess
import sys

# Versions of msgspec before 0.23 crash here: they lose count of the parts of such a type, which the garbage collector visits.
PROGRAM = """
import gc, msgspec
from reshard.spec.layout import Axes
for _ in range(200):
    msgspec.json.Decoder(msgspec.defstruct("Rule", [("order", Axes)]))
    gc.collect()
"""


def test_the_garbage_collector_can_visit_the_types_of_documents() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
