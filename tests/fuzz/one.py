"""Run one fuzz target: `one.py TARGET [FILE or FOLDER...]`, or `one.py TARGET OPTION...` with options of atheris.

Without options, the target reads the files, or else its corpus and the attacks on it, each within the limits of `limits.py`.
With options, atheris calls it with inputs that it makes of them.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Longer inputs reach little more, and take more time. A target's own files may be longer.
_LARGEST_INPUT = 4 << 10
_INSTRUMENTED = ("reshard", "reshard_operator")


def main(name: str, arguments: list[str]) -> None:
    """Read the inputs, or fuzz."""
    sys.path.append(str(Path(__file__).parents[1] / "support"))
    options = [each for each in arguments if each.startswith("-")]
    with import_module("atheris").instrument_imports([*_INSTRUMENTED]) if options else contextlib.nullcontext():
        _run(name, arguments, fuzzes=bool(options))


def _run(name: str, arguments: list[str], *, fuzzes: bool) -> None:
    from attacks import attacks_on

    from limits import Limited
    from reshard.errors import ReshardError

    module = import_module(f"targets.{name}")

    def target(content: bytes) -> None:
        with contextlib.suppress(ReshardError):
            module.read(content)

    contents = {f"{name}-seed-{i}": each if isinstance(each, bytes) else each.read_bytes() for i, each in enumerate(module.SEEDS)}
    if fuzzes:
        longest = max(_LARGEST_INPUT, *map(len, contents.values()))
        contents |= {which: content for which, content in attacks_on(name).items() if len(content) <= longest}
        _fuzz(target, contents, [f"-max_len={longest}", *arguments])
        return
    contents |= attacks_on(name)
    paths = [file for given in map(Path, arguments) for file in ([given] if given.is_file() else sorted(given.iterdir()))]
    contents = {str(path): path.read_bytes() for path in paths} or contents
    limited = Limited(target)
    for which, content in contents.items():
        limited(content, which)
    print(f"{len(contents)} files")


def _fuzz(target: Callable[[bytes], None], contents: dict[str, bytes], arguments: list[str]) -> None:
    atheris = import_module("atheris")

    def timed(content: bytes) -> None:
        start = time.process_time()
        target(content)
        assert time.process_time() - start < 1 + len(content) / 1000, "the parser took more than a second per kilobyte"

    with tempfile.TemporaryDirectory() as folder:
        for which, content in contents.items():
            Path(folder, which).write_bytes(content)
        atheris.Setup([sys.argv[0], *arguments, folder], timed)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
