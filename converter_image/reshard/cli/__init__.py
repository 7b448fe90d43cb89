"""The command line: arguments in, exit codes and one-line errors out."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any, Self

import click

from reshard.cli import show, streams
from reshard.cli.commands import cli
from reshard.cli.state import Invocation
from reshard.errors import ReshardError, StorageError, UsageError, printable
from reshard.progress import CancelledError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

# A cancelled command has cleaned up by then, unless its storage does not answer; the next run removes what it leaves.
_PATIENCE_SECONDS = 1.8


def program(arguments: Sequence[str] | None = None) -> int:
    """Run one command as a process of its own, which ends soon after a signal even when it is stuck.

    Args:
        arguments: the arguments after the program's name; None: those of this process.

    Returns:
        The exit code.
    """
    code = _main(arguments, patience=_PATIENCE_SECONDS)
    streams.flush_at_exit()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command in a process that does other things too, from any thread.

    In the main thread SIGTERM and SIGINT cancel the command while it runs. Signal handlers and standard streams are restored.

    Args:
        arguments: the arguments after the program's name; None: those of this process.

    Returns:
        The exit code.
    """
    return _main(arguments, patience=None)


def _main(arguments: Sequence[str] | None, *, patience: float | None) -> int:
    invocation = Invocation()
    signals = _Signals(invocation, patience)
    with streams.usable():
        try:
            with signals:
                return _run(sys.argv[1:] if arguments is None else list(arguments), invocation)
        except CancelledError as error:  # it may also come while another end is being told
            signals.told = True
            return _fail(error, invocation, code=128 + (signals.received or signal.SIGTERM))
        finally:
            if invocation.log_handler is not None:
                invocation.log_handler.close()


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
        streams.discard("stdout")
        return 0
    except OSError as error:  # a storage's are ReshardErrors: this one is of what we print to
        streams.discard("stdout")
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
        show.say("".join(traceback.format_exception(cause or error)).rstrip(), logging.ERROR)
    code = error.exit_code if code is None else code
    show.say(f"reshard: {printable(str(error))}", logging.ERROR, reason=error.reason, exit_code=code)
    return code


class _Signals:
    """While active, the first SIGTERM or SIGINT cancels the command.

    Args:
        invocation: the command.
        patience: seconds after which the process ends, whatever it is doing; None: never.
    """

    def __init__(self, invocation: Invocation, patience: float | None) -> None:
        self.received: int | None = None
        self.told = False
        self._invocation, self._patience = invocation, patience
        self._before: dict[int, Any] = {}
        self._over = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                before = signal.getsignal(number)
                # None: not set from Python, and cannot be restored. A process in the background ignores SIGINT.
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
        if not self.told:
            show.say(f"reshard: {CancelledError()}")
        os._exit(code)
