"""The processes of a tuning run under torchrun, their devices, and how they share one model. Called by text_tuning.py.

ddp: each holds a copy, and gradients are averaged. fsdp: each holds a share of every weight, gradient and optimiser's
state, and a layer is whole only while it is computed (torch's fully_shard). Both take the same steps.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from models.text_adapters import layers_of

if TYPE_CHECKING:
    from models.text_objective import Objective


@contextlib.contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """Our number and how many there are, as torchrun says; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    if distributed.is_initialized():  # by whoever tunes several times; it ends it, too
        yield distributed.get_rank(), world
        distributed.barrier()
        return
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield distributed.get_rank(), world
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def device_of(rank: int, threads: int) -> Iterator[torch.device]:
    """The device of a process, and its share of the cores."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", str(rank))))
        torch.cuda.set_device(device)
        yield device
        return
    before = torch.get_num_threads()
    half = (os.cpu_count() or 1) // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, half))
    try:
        yield torch.device("cpu")
    finally:
        torch.set_num_threads(before)


def shard(objective: "Objective", device: torch.device, world: int) -> None:
    """Cut all weights into shares, layer by layer, in place. Before an optimiser is made of them."""
    mesh = init_device_mesh(device.type, (world,))
    for layer in layers_of(objective.learner.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def copies(objective: "Objective") -> Any:
    """The objective as one of several copies."""
    return DistributedDataParallel(objective, find_unused_parameters=True, broadcast_buffers=False)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor with all its shares, on the processor. All processes have to ask."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu().contiguous()


def like(value: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A whole tensor cut as another one is. Every process has to hold the same: nothing is sent."""
    if not isinstance(other, DTensor) or isinstance(value, DTensor) or value.shape != other.shape:
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


@torch.no_grad()
def fill(weights: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> None:
    """Values, whole or cut, into tensors that a model holds."""
    for name, value in weights.items():
        value.copy_(like(found[name], value))


def agree(verdict: str, world: int) -> str:
    """The first process's verdict, for all."""
    if world == 1:
        return verdict
    said = [verdict]
    distributed.broadcast_object_list(said)
    return said[0]
