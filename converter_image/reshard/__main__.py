"""Run the command-line interface, as `reshard` or `python -m reshard`."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run one command. Return the exit code."""
    # Until the command handles it, SIGINT just ends the process: Python would print a traceback of its imports.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from reshard.cli import program  # noqa: PLC0415 - see above

    return program()


if __name__ == "__main__":
    sys.exit(main())
