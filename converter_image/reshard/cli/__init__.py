"""The command line: arguments in, exit codes and one-line errors out."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Literal, Self

import click

from reshard.cli import show
from reshard.cli.commands import cli
from reshard.cli.state import Invocation
from reshard.errors import ReshardError, StorageError, UsageError, printable
from reshard.progress import CancelledError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

# A pod is killed some time after SIGTERM; what is still busy by then is left to the next try's sweeping.
_PATIENCE_SECONDS = 4.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those behind the program's name; None: those of this process.

    Returns:
        The exit code.
    """
    streams: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
    for name in streams:
        if getattr(sys, name) is None:  # it was closed; a file that is opened now must not take its place
            show.discard(name)
    invocation = Invocation()
    with _Signals(invocation) as signals:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments), invocation)
        except CancelledError as error:  # it may also come while another end is being told
            signals.told = True
            return _fail(error, invocation, code=128 + (signals.received or signal.SIGTERM))


def _run(arguments: list[str], invocation: Invocation) -> int:  # noqa: PLR0911 - one way out for each kind of end
    try:
        # Not by cli.main(), which takes a pipe that nobody reads any more for a failure.
        with cli.make_context("reshard", arguments, obj=invocation) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except CancelledError:
        raise
    except ReshardError as error:
        return _fail(error, invocation)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        return _misused(error, invocation)
    except (click.Abort, KeyboardInterrupt):
        return _fail(CancelledError(), invocation, code=128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read our output has gone
        show.discard("stdout")
        return 0
    except OSError as error:  # a storage's are ReshardErrors: this one is of what we print to
        show.discard("stdout")
        where = error.filename or "standard output"
        return _fail(
            StorageError(
                "OutputFailed", error.strerror or str(error), where=where, fix="check where the output goes, and run again"
            ),
            invocation,
            cause=error,
        )
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


def _misused(error: click.ClickException, invocation: Invocation) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        show.say(error.format_message())
        return error.exit_code
    where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
    return _fail(UsageError("Usage", error.format_message().rstrip("."), where=where, fix="see --help"), invocation)


def _fail(error: ReshardError, invocation: Invocation, *, code: int | None = None, cause: BaseException | None = None) -> int:
    if invocation.debug:
        traceback.print_exception(cause or error)
    show.say(f"reshard: {printable(str(error))}")
    return error.exit_code if code is None else code


class _Signals:
    """SIGTERM and Ctrl-C call the work off, once; what was half done is cleared away on the way out."""

    def __init__(self, invocation: Invocation) -> None:
        self.received: int | None = None
        self.told = False
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
        watchdog = threading.Timer(_PATIENCE_SECONDS, self._give_up, (128 + number,))
        watchdog.daemon = True
        watchdog.start()
        raise CancelledError

    def _give_up(self, code: int) -> None:
        if not self.told:
            show.say(f"reshard: {CancelledError()}")
        os._exit(code)
