"""What all programs of this folder share: arguments and an answer in JSON, and a world of several processes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import multiprocessing

if TYPE_CHECKING:
    from collections.abc import Callable

warnings.filterwarnings("ignore")
os.environ["GLOO_SOCKET_IFNAME"] = "lo"

_LONGEST = timedelta(seconds=60)  # to wait for another rank, which may have failed


def answer(program: Callable[..., Any]) -> None:
    """Call a program with the JSON object in the first argument, and print what it returns as one line of JSON."""
    found = program(**json.loads(sys.argv[1]))
    sys.stdout.write(f"\n{json.dumps(found)}\n")


def in_world(ranks: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in processes that form one gloo group, and return what it returns on rank 0.

    The processes are forked, because importing torch takes longer than most programs. So this process must not have started
    threads: it must not have run a backward pass or formed a group.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(_of_rank, args=(ranks, folder, function, arguments), nprocs=ranks, start_method="fork")
        return json.loads((Path(folder) / "answer").read_text())


def _of_rank(rank: int, ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks, timeout=_LONGEST)
    found = function(*arguments)
    dist.barrier()
    if rank == 0:
        (Path(folder) / "answer").write_text(json.dumps(found))
    dist.destroy_process_group()
