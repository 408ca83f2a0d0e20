"""Decides on the whole network whether its corrections help: on images that they have not seen, right after the cut.

Each layer's correction is the best for what the dense network's layers read. Cut layers before it, and norms over
removed channels, change what it reads, so corrections that are right one by one can do harm together. The check cuts a
copy in each way and compares the outputs of the layers that keep all their channels, as a rule the network's last ones,
with those of the dense network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..moments import Moments
from ..network.untouched import copied_model, random_states, untouched
from ..reporting.progress import with_progress
from ..structure.groups import MODEL_OUTPUT, ChannelGroups

WAYS = ("renormalised", "refit", "careful", "emitted", "none")
"""Refitting with small ridges, with new statistics of batch norms (`sirfp.surgery.renormalise`); without these; with
the best ridge of each layer; correcting for emptied channels; no correction."""

CAREFUL = 0.8
"""The best ridge of each layer is taken only if its network's error is below this share of that of small ridges: the
check fits on half of the images, which favours large ridges."""
MARGIN, MOST = 0.3, 0.15
"""A correction is taken only if its error is smaller by `MARGIN` divided by the root of the number of images, or by
`MOST` if that is less, as a share of the error without one."""


@torch.no_grad()
def best_way(
    model: nn.Module,
    found: ChannelGroups,
    keep: np.ndarray,
    moments: Moments,
    cut: Callable[[nn.Module, str], object],
    ways: tuple[str, ...] = WAYS,
) -> str:
    """Returns the way of correcting whose cut network is closest to the dense one.

    Args:
        model: the dense model.
        found: its groups.
        keep: the atoms to keep, (atoms,) of bool.
        moments: they hold the images to check on.
        cut: cuts a copy of the model in one of the ways, having seen only the first half of the images.
        ways: to choose from; the last one is to correct nothing.

    Returns:
        One of `ways`: the first but "renormalised" if there are no images or no layers to check on.
    """
    names = [n for n in _whole_outputs(found, keep) if not isinstance(model.get_submodule(n), torch.jit.ScriptModule)]
    if not moments.unseen or not names or not keep.size:
        return next(way for way in ways if way != "renormalised")
    with untouched(model), moments.as_taken(model):
        wanted = list(_outputs(model, names, moments))
    errors = []
    for way in with_progress(ways, "trying ways to correct the cut network", len(ways)):
        pruned = copied_model(model)
        cut(pruned, way)
        with random_states(pruned), moments.as_taken(pruned):
            errors.append(_error(wanted, _outputs(pruned, names, moments), names))
        del pruned
    total = torch.stack([*errors, errors[0].new_tensor(moments.checked)])
    if dist.is_available() and dist.is_initialized():
        total = total.to(next(model.parameters()).device)
        dist.all_reduce(total)
    total = torch.where(total.isfinite(), total, torch.inf)
    images, total = total[-1].clamp_min(1), total[:-1]
    total[-1] *= 1 - (MARGIN / images.sqrt()).clamp_max(MOST)
    if {"renormalised", "refit"} <= set(ways) and total[ways.index("refit")] >= total[-1]:
        total[ways.index("renormalised")] = torch.inf  # new statistics hide, on few images, what the refit does wrong
    if "careful" in ways:
        total[ways.index("careful")] /= CAREFUL
    return ways[int(total.argmin())]


def _whole_outputs(found: ChannelGroups, keep: np.ndarray) -> list[str]:
    """Returns the names of the layers that read prunable channels and make the model's outputs.

    If there are none (the outputs of detectors are boxes), of all layers that read prunable channels and keep all their
    outputs.
    """
    cut = {
        piece.tensor
        for group in found
        if not keep[found.spans[group.name]].all()
        for piece in group.slices
        if piece.dim == 0
    }
    names = [name.rpartition(".")[0] for name in dict.fromkeys(e.weight for e in found.emissions) if name not in cut]
    outputs = {frozen.name for frozen in found.frozen if frozen.reason == MODEL_OUTPUT}
    return [name for name in names if name in outputs] or names


def _outputs(model: nn.Module, names: list[str], moments: Moments) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Yields, for each batch to check on, the outputs of each call of some layers."""
    for batch in moments.unseen:
        outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        with ExitStack() as handles:
            for name in names:
                handles.callback(model.get_submodule(name).register_forward_hook(_keeper(outputs[name])).remove)
            moments.run(model, batch)
        yield outputs


def _keeper(kept: list[torch.Tensor]) -> Callable:
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            kept.append(output.detach().clone())

    return keep


def _error(wanted: list[dict], found: Iterator[dict], names: list[str]) -> torch.Tensor:
    """Returns the mean over layers of the squared error of their outputs, as a share of the outputs' variance."""
    sums: dict[str, list[torch.Tensor]] = {}
    for ours, theirs in zip(wanted, found, strict=True):
        for name in names:
            for one, other in zip(ours[name], theirs[name], strict=False):
                if one.shape == other.shape and one.numel() > 1:
                    error = (other - one).double().square().sum()
                    sums.setdefault(name, []).append(torch.stack([error, one.double().var() * one.numel()]))
    shares = [torch.stack(parts).sum(0) for parts in sums.values()]
    if not shares:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([error / scale.clamp_min(1e-30) for error, scale in shares]).mean().cpu()
