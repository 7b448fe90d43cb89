"""MindSpore's own saving and loading of checkpoints without redundancy, for all ranks of a cluster in one process.

MindSpore's own code runs. Only its queries of, and exchanges with, other processes are replaced: the own rank, the size of a
group, and the exchanges between ranks.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import mindspore
import numpy as np
from mindspore import nn
from mindspore.parallel import _cell_wrapper
from mindspore.train import CheckpointConfig, ModelCheckpoint, _utils, serialization
from mindspore.train.callback import _checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from definition import Cut
    from transforms import Case


def network(tensors: dict[str, Any], layouts: dict[str, Cut]) -> nn.Cell:
    """A compiled network: parameters, and how those in the strategy are cut."""
    made = nn.Cell()
    for name, tensor in tensors.items():
        made.insert_param_to_cell(name, mindspore.Parameter(tensor, name=name), check_name_contain_dot=False)
    made.parameter_layout_dict = {
        name: [list(cut.matrix), [axes[0] if axes else -1 for axes in cut.maps], [], 0, True, _group(cut)]
        for name, cut in layouts.items()
    }
    return made


def _group(cut: Cut) -> str:
    """The name of the group that shares a slice as optimizer shards; here it says how many these are."""
    if not cut.size:
        return ""
    used = np.prod([cut.matrix[-1 - axis] for axes in cut.maps for axis in axes], dtype=int)
    return str(cut.devices // used if cut.size == -1 else cut.size)


def _answering(name: str, found: int) -> Callable[..., int]:
    """A function in place of `get_rank` or `get_group_size`. The name of a group is its size, see `_group`."""

    def answer(group: str = "") -> int:
        return int(group) if group and name == "get_group_size" else found

    return answer


@contextlib.contextmanager
def on(rank: int, ranks: int) -> Iterator[None]:
    """Act as a rank of a cluster of the given size."""
    with contextlib.ExitStack() as stack:
        for module in (_checkpoint, _utils, serialization, _cell_wrapper):
            for name, found in (("get_rank", rank), ("get_group_size", ranks)):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, _answering(name, found)))
        yield


def save(folder: Path, case: Case, rank: int, tensors: dict[str, Any]) -> None:
    """A source rank's file, as ModelCheckpoint saves it in training."""
    stage = rank // case.source_devices
    layouts = {t.name: t.source for t in case.tensors if t.source is not None and stage in t.source_stages}
    folder.mkdir(parents=True)
    config = CheckpointConfig(integrated_save=False, remove_redundancy=True, format=case.source_format)
    with on(rank, case.source_ranks):
        callback = ModelCheckpoint("net", str(folder), config)
        training = SimpleNamespace(
            cur_step_num=25, cur_epoch_num=1, batch_num=25, train_network=network(tensors, layouts), optimizer=None
        )
        callback._save_ckpt(training, True)  # noqa: FBT003, SLF001 - what it calls at a step's end


class Cluster:
    """Loads the files of all ranks, one rank after the other: twice to learn what each would send, then with all of it."""

    def __init__(self, case: Case, files: dict[int, str], zeros: list[dict[str, Any]]) -> None:
        self._case, self._files, self._zeros = case, files, zeros
        self._loaded: dict[int, Any] = {rank: {rank} for rank in files}
        self._sent: dict[tuple[Any, ...], dict[int, bytes]] = {}

    def load(self) -> list[dict[str, Any]]:
        """Return the final contents of each rank's network."""
        for _ in range(2):
            for rank in self._files:
                self._load(rank)
        return [self._load(rank) for rank in self._files]

    def _load(self, rank: int) -> dict[str, Any]:
        case = self._case
        layouts = {
            t.name: t.target for t in case.tensors if t.target is not None and rank // case.target_devices in t.target_stages
        }
        net = network(self._zeros[rank], layouts)
        count: dict[str, int] = {}

        def gather(found: list[Any], mine: set[Any]) -> None:
            self._loaded[rank] = set(mine)
            found[:] = [self._loaded[r] for r in sorted(self._loaded)]

        def communicator(group: str) -> Any:
            def add_up(tensor: Any) -> Any:
                count[group] = count.get(group, 0) + 1
                contents = self._sent.setdefault((group, count[group]), {})
                contents[rank] = tensor.get_bytes()
                summed = np.bitwise_or.reduce([np.frombuffer(content, np.uint8) for content in contents.values()])
                made = serialization.Tensor_.convert_bytes_to_tensor(summed.tobytes(), tuple(tensor.shape), tensor.dtype)
                return mindspore.Tensor(made)

            return add_up

        def nothing(*_: object) -> None:
            pass

        with on(rank, case.target_ranks), contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch("mindspore.mint.distributed.all_gather_object", gather))
            stack.enter_context(mock.patch("mindspore.runtime.synchronize", nothing))
            for name, put in {
                "SingleCommunicator": communicator,
                "create_group": nothing,
                "destroy_group": nothing,
                "_remove_group_info": nothing,
                "_get_group_map": dict,
            }.items():
                stack.enter_context(mock.patch.object(_cell_wrapper, name, put))
            path = self._files[rank]
            kind = path.rpartition(".")[2]
            try:  # a safetensors file says of itself that redundancy is removed
                mindspore.load_checkpoint(path, net, format=kind, remove_redundancy=kind == "ckpt")
            except ValueError as error:
                if "parameter dict is empty" not in str(error):
                    raise
                mindspore.load_param_into_net(net, {}, remove_redundancy=True)
        return {param.name: param for param in net.get_parameters()}
