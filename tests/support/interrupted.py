"""The command line in a process of its own, which gets a signal while it writes to a bucket."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import fault_proxy

if TYPE_CHECKING:
    import signal

    import s3_server

_LONGEST_SECONDS = 120


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "reshard", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def ended_by(number: signal.Signals, server: s3_server.Server, arguments: list[str]) -> tuple[int, str]:
    """Return exit code and output of a process that gets a signal while it waits for the answer to its first part."""
    plan = fault_proxy.Plan(holds="partNumber=")
    with fault_proxy.between(server.endpoint, plan) as endpoint:
        process = start(arguments, AWS_ENDPOINT_URL_S3=endpoint)
        try:
            assert plan.held.wait(_LONGEST_SECONDS)
        finally:
            process.send_signal(number)
            plan.released.set()
            said = process.communicate()[1]
    return process.returncode, said
