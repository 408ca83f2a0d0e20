"""Local response norm (`nn.LocalResponseNorm`) of a network that has lost some of its channels.

The norm divides each channel by a sum over the squares of its neighbours, the channels whose indices are near its own.
After a cut other channels would stand side by side. The subclass here knows the index that each kept channel has in the
dense network, its *position*. Only kept channels whose positions are near are summed, so the pruned network gives what
the dense network gives with the removed channels at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .walk import walk, walk_modules

POSITIONS = "positions"
"""Name of the buffer that holds the positions. Plans cut it like every other tensor; a dense network does not have it.
"""


class PrunedResponseNorm(nn.LocalResponseNorm):
    """Local response norm over channels that were neighbours in the dense network.

    Attributes:
        positions: the dense index of each channel, ascending, (C,) of int64; not in the state dict, as a plan tells it.
        neighbours: for each offset in the window but 0, the channel at this offset from each channel, C where there is
            none, (offsets, C) of int64.
    """

    positions: torch.Tensor
    neighbours: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalises (N, C, ...) of at least three dimensions."""
        squares = input.square() / self.size
        padded = F.pad(squares, [0, 0] * (input.dim() - 2) + [0, 1])
        total = squares
        for index in self.neighbours.unbind():
            total = total + padded.index_select(1, index.to(input.device))
        return input / (total * self.alpha + self.k).pow(self.beta)


def is_response_norm(module: nn.Module) -> bool:
    """Returns True for PyTorch's local response norm, and for subclasses that do not change its forward."""
    own = isinstance(module, nn.LocalResponseNorm) and "forward" not in vars(module)
    return own and type(module).forward in (nn.LocalResponseNorm.forward, PrunedResponseNorm.forward)


def new_positions(model: nn.Module) -> dict[str, Any]:
    """Returns the local response norms that have lost no channels yet, {name that their positions get: module}."""
    return {
        f"{name}.{POSITIONS}".lstrip("."): module
        for name, module in model.named_modules(remove_duplicate=False)
        if is_response_norm(module) and not isinstance(module, PrunedResponseNorm)
    }


def give_positions(norm: Any, channels: int, device: torch.device) -> None:
    """Gives a dense local response norm the positions of its channels, which can then be cut."""
    norm.__class__ = PrunedResponseNorm
    norm.register_buffer(POSITIONS, torch.arange(channels, device=device), persistent=False)
    norm.register_buffer("neighbours", torch.zeros((0, channels), dtype=torch.int64, device=device), persistent=False)


def refit_response_norms(model: nn.Module) -> None:
    """Finds the neighbours of each channel after a cut."""
    for module in walk_modules(model):
        if isinstance(module, PrunedResponseNorm):
            module.neighbours = _neighbours(module.positions, module.size)


def _neighbours(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Returns `PrunedResponseNorm.neighbours` for a window of `size` channels; of two middles, the later is taken."""
    offsets = [k for k in range(-(size // 2), (size - 1) // 2 + 1) if k]
    wanted = positions + torch.tensor(offsets, dtype=torch.int64, device=positions.device)[:, None]
    found = torch.searchsorted(positions, wanted)
    there = positions[found.clamp_max(len(positions) - 1)] == wanted
    return torch.where(there, found, len(positions))[there.any(1)]


@contextmanager
def followed_response_norms(model: nn.Module, trace: Any) -> Iterator[None]:
    """Lets channels pass through local response norms while a model is traced.

    The channels of each norm are noted in `trace.positions`. A norm that runs on several features has one list of
    positions, so these features lose the same channels.

    Args:
        model: the model.
        trace: a trace that has not run yet.
    """
    norms = {name: module for name, module in walk(model) if is_response_norm(module)}
    for name, module in norms.items():
        vars(module)["forward"] = _following(trace, name, module)
    try:
        yield
    finally:
        for module in norms.values():
            del vars(module)["forward"]


def _following(trace: Any, name: str, norm: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    forward = norm.forward

    def follow(input: torch.Tensor) -> torch.Tensor:
        trace.read(input)
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            out = forward(trace.present(input))
        channels = trace.dim(input, 1)
        if name in trace.positions:
            reason = "a local response norm runs on features of several widths"
            channels = trace.labels.tie(trace.positions[name], channels, reason)
        trace.positions[name] = channels
        trace.set(out, list(trace.dims(input)))
        return out

    return follow
