"""The command line: arguments in, exit codes and one-line errors out."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Self

import click

from reshard.cli.commands import cli
from reshard.cli.state import Invocation
from reshard.errors import ReshardError, UsageError, printable
from reshard.progress import CancelledError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

# A pod is killed some time after SIGTERM; what is still busy by then is left to the next try's sweeping.
_PATIENCE_SECONDS = 4.0


def main(arguments: Sequence[str] | None = None) -> int:  # noqa: PLR0911 - one way out for each kind of end
    """Run one command.

    Args:
        arguments: those behind the program's name; None: those of this process.

    Returns:
        The exit code.
    """
    invocation = Invocation()
    with _Signals(invocation) as signals:
        try:
            cli.main(
                list(arguments) if arguments is not None else None,
                prog_name="reshard",
                obj=invocation,
                standalone_mode=False,
            )
        except CancelledError as error:
            return _fail(error, invocation, code=128 + (signals.received or signal.SIGTERM))
        except ReshardError as error:
            return _fail(error, invocation)
        except click.exceptions.Exit as request:
            return request.exit_code
        except click.ClickException as error:
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
            return _fail(UsageError("Usage", error.format_message().rstrip("."), where=where, fix="see --help"), invocation)
        except (click.Abort, KeyboardInterrupt):
            return _fail(CancelledError(), invocation, code=128 + signal.SIGINT)
        except BrokenPipeError:  # whoever read our output has gone
            sys.stdout = None  # so that the interpreter's own flush at exit stays silent
            return 0
        except MemoryError as error:
            return _fail(
                ReshardError("OutOfMemory", "there is not enough memory", fix="run with fewer --workers"),
                invocation,
                cause=error,
            )
        except Exception as error:  # noqa: BLE001 - the last resort: a line instead of a traceback
            what = f"{type(error).__name__}: {error}"
            return _fail(
                ReshardError("Internal", what, fix="please report this, with what --debug prints"),
                invocation,
                cause=error,
            )
        return 0


def _fail(error: ReshardError, invocation: Invocation, *, code: int | None = None, cause: BaseException | None = None) -> int:
    if invocation.debug:
        traceback.print_exception(cause or error)
    print(f"reshard: {printable(str(error))}", file=sys.stderr)
    return error.exit_code if code is None else code


class _Signals:
    """SIGTERM and Ctrl-C call the work off, once; what was half done is cleared away on the way out."""

    def __init__(self, invocation: Invocation) -> None:
        self.received: int | None = None
        self._invocation = invocation
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave, it takes

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        self._invocation.cancellation.cancel()
        watchdog = threading.Timer(_PATIENCE_SECONDS, os._exit, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        raise CancelledError
