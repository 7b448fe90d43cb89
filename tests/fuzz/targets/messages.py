"""Fuzz the termination messages of pods, as the operator reads them."""

from __future__ import annotations

from reshard.spec.messages import (
    CommitMessage,
    FailureMessage,
    PlanMessage,
    RanksMessage,
    TransformMessage,
    UnreadableMessageError,
    decode_message,
    encode_message,
)
from reshard_operator.objects import Pod

COMMIT = CommitMessage("d", 1, 2, 3, "m")
PLAN = PlanMessage(1, 2, 3, 4, 5, 6, "d", notes=("n",))
MESSAGES = (PLAN, COMMIT, RanksMessage(1, 2, 3, 4, 5, 6, COMMIT), TransformMessage(PLAN, COMMIT), FailureMessage("r", "m", 65))
SEEDS = [encode_message(message).encode() for message in MESSAGES]


def read(content: bytes) -> None:
    text = content.decode(errors="replace")
    for kind in map(type, MESSAGES):
        try:
            found = decode_message(text, kind)
        except UnreadableMessageError:
            continue
        assert decode_message(encode_message(found), kind) == found
        if isinstance(found, PlanMessage):
            found.grouping.groups(found.target_ranks)
    terminated = {"exitCode": 1, "message": text}
    status = {"containerStatuses": [{"name": "reshard", "state": {"terminated": terminated}}]}
    Pod({"metadata": {"name": "p"}, "status": status}).failure()
