"""Measures loss curves: for each group alone, how far fewer channels move the network's output from the dense one's.

Scores of layers do not compare, so a ranking of scores says little about how many channels each layer should keep. A
curve measures it: a copy of the network is cut to a few widths of one group, the layers that read the group are
refitted, and the copy's output is compared with the dense network's on images that the refit has not seen. No labels
are needed. `sirfp.budget.widths` then chooses the widths of all groups that meet a budget at the least sum of losses.

Relatives: HALP (Shen et al., NeurIPS 2022) and SPDY (Frantar and Alistarh, ICML 2022), which solve such a knapsack with
scores and with layer-wise errors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..moments.inputs import Moments
from ..network.divergence import Divergence
from ..network.fingerprint import fingerprint
from ..network.forward import inference
from ..network.replay import Replay
from ..reporting.progress import with_progress
from ..structure.groups import ChannelGroups, Group
from ..surgery.plan_and_cut import cut_copy, touched_modules
from .curve import Curve
from .curve_store import CurveStore
from .grids import grid
from .limits import DEFAULT, Limits

logger = logging.getLogger(__name__)

LEVELS = (0.9, 0.7, 0.45, 0.2, 0.03)
"""Shares of a group's channels at which its curve is measured. The smallest matters: a block with a shortcut beside it
loses hardly more with 3% of its channels than with 20%."""


def measure_curves(
    model: nn.Module,
    found: ChannelGroups,
    orders: Mapping[str, torch.Tensor],
    moments: Moments | None,
    batches: Sequence[Any],
    divergence: Divergence,
    *,
    dense: Sequence[Sequence[Any]] | None = None,
    limits: Limits = DEFAULT,
    levels: Iterable[float] = LEVELS,
    widths: Mapping[str, Sequence[int]] | None = None,
    context: Callable[[], AbstractContextManager] = nullcontext,
    store: CurveStore | None = None,
) -> dict[str, Curve]:
    """Measures the loss curve of every group.

    In a distributed run each process measures on its own batches, and the losses are averaged over all images.

    Args:
        model: the network; it is not changed.
        found: its groups.
        orders: the atoms of each group from first to last removed, {group: (size,)}.
        moments: second moments of the layers' inputs, on other images than those of `batches`.
        batches: images that `moments` has not seen.
        divergence: compares outputs (`sirfp.network.divergence.divergence_for`).
        dense: the outputs of the dense network for each batch; by default those of `model`.
        limits: the widths that are allowed.
        levels: shares of a group's atoms at which its curve is measured.
        widths: {group: the widths in atoms, ascending and below the full one, at which its curve is measured}, in place
            of `levels`; groups that are not named are not measured.
        context: the context of every forward pass, e.g. autocast.
        store: keeps the losses of each group, and has those that were measured before in the same state. The code of a
            user's divergence is not part of the state. Each process has a store of its own.

    Returns:
        {group: curve}, for each group that was measured; losses in the divergence's unit (nats), 0 at the group's full
        width.

    Raises:
        InputError: a divergence is not finite, or not 0 for the dense network itself.
    """
    begin = time.perf_counter()
    grid = {group.name: _grid(group, limits, levels) for group in found} if widths is None else widths
    groups = [group for group in found if group.name in grid]
    losses: dict[str, list[float]] = {}
    with inference(model), context():
        replay = Replay(model, batches, divergence.outputs)
        dense = replay.outputs if dense is None else dense
        start = _mean(divergence, dense, replay.outputs)
        state = _state(model, found, moments, batches, divergence, dense, replay.outputs) if store is not None else ""
        changed = {group.name: _changed_modules(found, group) for group in groups}
        in_time = sorted(groups, key=lambda group: replay.moment(changed[group.name]))
        for group in with_progress(in_time, "measuring loss curves", len(in_time)):
            wanted = grid[group.name]
            key = fingerprint(group, orders[group.name], wanted) if store is not None else ""
            known = store.get(state, key, len(wanted)) if store is not None else None
            losses[group.name] = known or []
            if known is not None:
                continue
            replay.prepare(changed[group.name])
            for width in wanted:
                keep = np.ones(found.atoms, dtype=bool)
                gone = orders[group.name][: group.size - width].cpu().numpy()
                keep[found.spans[group.name].start + gone] = False
                copy = cut_copy(model, found, keep, moments, share_layers=True)
                outputs = [replay.run(copy, number) for number in range(len(batches))]
                losses[group.name].append(_mean(divergence, dense, outputs) - start)
            if store is not None:
                store.put(state, key, losses[group.name])
    images = sum(divergence.images(one) for one in dense)
    losses = _average({group.name: losses[group.name] for group in groups}, images)
    counted = [sum(map(len, losses.values())), len(losses), images]
    logger.info("Measured %d points of %d loss curves on %d images in %.1f s", *counted, time.perf_counter() - begin)
    return {
        group.name: Curve(group.name, group.size, (*grid[group.name], group.size), (*losses[group.name], 0.0))
        for group in groups
    }


def _changed_modules(found: ChannelGroups, group: Group) -> set[str]:
    """Returns the names of the modules that change if a group is cut."""
    keep = np.ones(found.atoms, dtype=bool)
    keep[found.spans[group.name]] = False
    return touched_modules(found, keep)


def _grid(group: Group, limits: Limits, levels: Iterable[float]) -> list[int]:
    """Returns the widths below the full one at which a group's curve is measured, in atoms, ascending."""
    allowed = np.array(grid(group, limits)[:-1])
    if not len(allowed):
        return []
    wanted = [share * group.size for share in levels]
    return sorted({int(allowed[np.abs(allowed - width).argmin()]) for width in wanted})


def _mean(divergence: Divergence, dense: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Returns the mean divergence over the images of all batches."""
    images = [divergence.images(one) for one in dense]
    values = [float(divergence.compare(a, b)) for a, b in zip(dense, outputs, strict=True)]
    return float(np.average(values, weights=images))


def _average(losses: dict[str, list[float]], images: int) -> dict[str, list[float]]:
    """Returns the mean of losses over all processes.

    Args:
        losses: {group: its losses on the images of this process}, with the groups in the same order in all processes.
        images: the number of images of this process, its weight in the mean.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return losses
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    flat = torch.tensor([x for each in losses.values() for x in each], dtype=torch.float64, device=device)
    total = torch.cat([flat * images, flat.new_tensor([images])])
    dist.all_reduce(total)
    values = iter((total[:-1] / total[-1]).tolist())
    return {name: [next(values) for _ in each] for name, each in losses.items()}


def _state(
    model: nn.Module,
    found: ChannelGroups,
    moments: Moments | None,
    batches: Sequence[Any],
    divergence: Divergence,
    *outputs: Any,
) -> str:
    """Returns a fingerprint of all that the losses of every group depend on; the processes of a run share no file."""
    kind = next(model.parameters(), torch.zeros(())).device.type
    precision = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.__version__
    measure = type(divergence).__module__, type(divergence).__qualname__
    return fingerprint(model, found.emissions, moments, list(batches), measure, outputs, kind, *precision)
