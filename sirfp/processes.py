"""Shares decisions and batch norm statistics between the processes of a distributed run.

In a run of one process these functions change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def world_size() -> int:
    """Returns the number of processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns the number of this process in the run, 0 for the first."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def decide_once(decide: Callable[[], T]) -> T:
    """Calls a function on the first process only and returns its result on every process.

    Args:
        decide: the function; its result is pickled to reach the other processes.

    Raises:
        Exception: the error that `decide` raised, on every process, so that no process waits for the others.
    """
    if world_size() == 1:
        return decide()
    box: list[Any] = [None]
    if rank() == 0:
        try:
            box[0] = decide()
        except Exception as error:
            box[0] = error
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]


def running_norms(model: nn.Module) -> dict[str, Any]:
    """Returns the batch norms of a model that have running statistics, by name; frozen ones of any library too."""
    return {
        name: module
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
        and all(isinstance(getattr(module, key, None), torch.Tensor) for key in ("running_mean", "running_var"))
        and isinstance(getattr(module, "eps", None), float)
    }


@torch.no_grad()
def average_norms(model: nn.Module) -> None:
    """Sets the running statistics of every process's batch norms to their mean over all processes.

    Each process sees different images, so the running statistics of the processes drift apart. Statistics that are
    already equal on all processes stay bit-identical.
    """
    if world_size() == 1:
        return
    kept = [b for norm in running_norms(model).values() for b in (norm.running_mean, norm.running_var)]
    if not kept:
        return
    own = torch.cat([buffer.double() for buffer in kept])
    first = own.clone()
    dist.broadcast(first, src=0)
    rest = own - first
    dist.all_reduce(rest)
    mean = first + rest / world_size()
    for buffer, part in zip(kept, mean.split([len(buffer) for buffer in kept]), strict=True):
        buffer.copy_(part)
