"""The first process of a PID namespace."""

import os
import signal
from collections.abc import Callable


def run(main: Callable[[], int]) -> int:
    """Run a child for the work: the first process of a namespace inherits every orphan, and must reap it."""
    child = os.fork()
    if child == 0:
        return main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        process, status = os.wait()
        if process == child:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
