"""What all commands of one invocation share."""

from __future__ import annotations

from dataclasses import dataclass, field

from reshard.progress import Cancellation


@dataclass
class Invocation:
    """One call of the program.

    Attributes:
        debug: whether a failure shows its traceback.
        cancellation: lets a signal call the work off.
    """

    debug: bool = False
    cancellation: Cancellation = field(default_factory=Cancellation)
