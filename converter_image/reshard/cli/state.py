"""What all commands of one invocation share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reshard.progress import Cancellation

if TYPE_CHECKING:
    from reshard.cli.logs import Handler


@dataclass
class Invocation:
    """One call of the program.

    Attributes:
        debug: whether a failure shows its traceback.
        log_handler: handler of the log records, once the options are known.
        cancellation: lets a signal call the work off.
    """

    debug: bool = False
    log_handler: Handler | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)
