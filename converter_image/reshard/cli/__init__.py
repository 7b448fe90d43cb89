"""The command-line interface. It runs one command, and reports an error as one line and an exit code."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import click

from reshard.cli import console
from reshard.cli.commands import cli
from reshard.cli.shells import complete
from reshard.errors import ReshardError, StorageError, UsageError, printable
from reshard.progress import Cancellation, CancelledError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


# Enough for a cancelled command to clean up, unless its storage hangs. The next run removes the rest.
_PATIENCE_SECONDS = 1.8
# New objects before the garbage collector runs. Imported modules create many objects that are never freed, and with Python's
# default of 700, searching them takes a tenth of the time to start.
_COLLECTED_OBJECTS = 50_000


@dataclass
class Invocation:
    """The state of one call of the program.

    Attributes:
        debug: whether to print the traceback of a failure.
        as_json: whether the result is printed as one JSON object.
        is_program: whether the command is the main program, so that it may configure the whole process.
        telemetry: exit stack that ends logging and tracing when the command has ended.
        cancellation: cancellation of the work on a signal.
    """

    debug: bool = False
    as_json: bool = False
    is_program: bool = False
    telemetry: ExitStack = field(default_factory=ExitStack)
    cancellation: Cancellation = field(default_factory=Cancellation)


def program(arguments: Sequence[str] | None = None) -> int:
    """Run one command as the main program. After a signal, the process exits soon, even if the command hangs.

    Args:
        arguments: command-line arguments after the program name. None means those of this process.

    Returns:
        The exit code.
    """
    if (done := complete(cli)) is not None:
        return done
    gc.set_threshold(_COLLECTED_OBJECTS)
    # numpy starts a thread of OpenBLAS for each CPU, which takes half of numpy's time to start. Nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = _main(arguments, patience=_PATIENCE_SECONDS)
    console.flush_at_exit()
    # The interpreter searches all objects for garbage when it ends, which takes a quarter of the time of a short command.
    gc.freeze()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command inside a larger program, from any thread.

    In the main thread, SIGTERM and SIGINT cancel the command. Signal handlers and standard streams are restored afterwards.

    Args:
        arguments: command-line arguments after the program name. None means those of this process.

    Returns:
        The exit code.
    """
    return _main(arguments, patience=None)


def _main(arguments: Sequence[str] | None, *, patience: float | None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # Not from the parsed options: a command line that cannot be parsed is an error to print, too.
    invocation = Invocation(as_json="--json" in arguments, is_program=patience is not None)
    signals = _Signals(invocation, patience)
    with console.usable(), invocation.telemetry:
        try:
            with signals:
                return _run(arguments, invocation)
        except CancelledError as error:  # a signal can also arrive while another outcome is being reported
            signals.reported = True
            return _report(error, invocation, code=128 + (signals.received or signal.SIGTERM))


def _run(arguments: list[str], invocation: Invocation) -> int:  # noqa: PLR0911 - one return per kind of outcome
    try:
        # Not cli.main(), which treats a closed pipe as a failure.
        with cli.make_context("reshard", arguments, obj=invocation) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except CancelledError:
        raise
    except ReshardError as error:
        return _report(error, invocation)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        return _report_misuse(error, invocation)
    except (click.Abort, KeyboardInterrupt):
        return _report(CancelledError(), invocation, code=128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of the output is gone
        console.discard("stdout")
        return 0
    except OSError as error:  # storages raise ReshardErrors, so this one is from the output
        console.discard("stdout")
        where = error.filename or "standard output"
        return _report(
            StorageError(
                "OutputFailed",
                error.strerror or str(error),
                where=where,
                fix="check its destination, and run the command again",
            ),
            invocation,
            cause=error,
        )
    except MemoryError as error:
        return _report(
            ReshardError("OutOfMemory", "out of memory", fix="run with fewer --workers"),
            invocation,
            cause=error,
        )
    except Exception as error:  # noqa: BLE001 - a line instead of a traceback, for errors that nothing else catches
        what = f"{type(error).__name__}: {error}"
        return _report(
            ReshardError("Internal", what, fix="report this bug, with the output of --debug"),
            invocation,
            cause=error,
        )
    return 0


def _report_misuse(error: click.ClickException, invocation: Invocation) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        console.err(error.format_message())
        return error.exit_code
    where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
    return _report(UsageError("Usage", error.format_message().rstrip("."), where=where, fix="see --help"), invocation)


def _report(error: ReshardError, invocation: Invocation, *, code: int | None = None, cause: BaseException | None = None) -> int:
    if invocation.debug:
        console.err("".join(traceback.format_exception(cause or error)).rstrip(), logging.ERROR)
    code = error.exit_code if code is None else code
    text = f"reshard: {printable(str(error))}. See {error.documentation}"
    console.err(text, logging.ERROR, reason=error.reason, exit_code=code, documentation=error.documentation)
    if invocation.as_json and error.reason != "OutputFailed":
        console.out_error(error, code)
    return code


class _Signals:
    """A context in which the first SIGTERM or SIGINT cancels the command.

    Args:
        invocation: state of the command.
        patience: seconds after a signal at which the process exits in any case. None means never.
    """

    def __init__(self, invocation: Invocation, patience: float | None) -> None:
        self.received: int | None = None
        self.reported = False
        self._invocation, self._patience = invocation, patience
        self._before: dict[int, Any] = {}
        self._over = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.getsignal(number)
                # None: not set from Python, so it cannot be restored. A background process ignores SIGINT.
                if before not in (None, signal.SIG_IGN):
                    self._before[number] = before
                    signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        self._invocation.cancellation.cancel()
        if self._patience is not None:
            watchdog = threading.Timer(self._patience, self._give_up, (128 + number,))
            watchdog.daemon = True
            watchdog.start()
        if not self._over:
            raise CancelledError

    def _give_up(self, code: int) -> None:
        if not self.reported:
            error = CancelledError()  # not to standard output, which may be what blocks
            text = f"reshard: {error}. See {error.documentation}"
            console.err(text, logging.ERROR, reason=error.reason, exit_code=code, documentation=error.documentation)
        os._exit(code)
