"""What the processes of a run agree on. On a run of one process all of this does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def world_size() -> int:
    """How many processes the run has."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def decide_once(decide: Callable[[], T]) -> T:
    """Decides once, on the first process, and gives every process the same answer.

    Args:
        decide: what the first process calls; its answer is pickled.

    Raises:
        Exception: what `decide` raised, on every process, so that none waits for the others.
    """
    if world_size() == 1:
        return decide()
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box[0] = decide()
        except Exception as error:
            box[0] = error
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], Exception):
        raise box[0]
    return box[0]


@torch.no_grad()
def average_norms(model: nn.Module) -> None:
    """Gives the batch norms of every process the mean of all processes' running statistics.

    Each process sees other images, so what its norms keep drifts apart from the others'. Where they agree already they
    stay as they are, to the last bit.
    """
    if world_size() == 1:
        return
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    kept = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
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
