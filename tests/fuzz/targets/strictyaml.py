"""Fuzz the reader of YAML: what it accepts, PyYAML's safe loader reads as the same."""

from __future__ import annotations

import yaml

from reshard.strictyaml import documents

SEED = b"a: 1\nb: [x, 'y', 2024-01-02, 0x1F, ~, 1.5]\nc: {d: |\n  text\n}\n---\n- !!str 1\n"
SEEDS = [SEED, b"a: &x 1\nb: *x\n", b"<<: {a: 1}\n", b"a: 1\na: 2\n"]


def read(content: bytes) -> None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    found = documents(text, "fuzz")
    assert repr(found) == repr(list(yaml.safe_load_all(text)))
