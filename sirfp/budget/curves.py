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
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
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
from ..processes import decide_once
from ..reporting.progress import with_progress
from ..structure.groups import ChannelGroups, Group
from ..surgery.plan_and_cut import cut_copy, touched_modules
from .curve import Curve
from .curve_store import CurveStore
from .grids import grid
from .limits import DEFAULT, Limits

logger = logging.getLogger(__name__)

LEVELS = (0.8, 0.5, 0.2, 0.03)
"""Shares of a group's channels at which its curve is measured. The smallest matters: a block with a shortcut beside it
loses hardly more with 3% of its channels than with 20%."""


class CurveMeter:
    """Measures losses of one network at given widths of its groups.

    In a distributed run each process measures on its own batches, and the losses are averaged over all images.

    Args:
        model: the network; it is not changed, and must not change while this object is in use.
        found: its groups.
        orders: the atoms of each group from first to last removed, {group: (size,)}.
        moments: second moments of the layers' inputs, on other images than those of `batches`.
        batches: images that `moments` has not seen.
        divergence: compares outputs (`sirfp.network.divergence.divergence_for`).
        dense: the outputs of the dense network for each batch; by default those of `model`.
        context: the context of every forward pass, e.g. autocast.
        store: keeps each loss, and has those that were measured before in the same state. The code of a user's
            divergence is not part of the state. Each process has a store of its own.

    Attributes:
        points: the number of losses asked for so far.

    Raises:
        InputError: a divergence is not finite, or not 0 for the dense network itself.
    """

    def __init__(
        self,
        model: nn.Module,
        found: ChannelGroups,
        orders: Mapping[str, torch.Tensor],
        moments: Moments | None,
        batches: Sequence[Any],
        divergence: Divergence,
        *,
        dense: Sequence[Sequence[Any]] | None = None,
        context: Callable[[], AbstractContextManager] = nullcontext,
        store: CurveStore | None = None,
    ):
        self.model, self.found, self.orders, self.moments = model, found, orders, moments
        self.batches, self.divergence, self.context, self.store = batches, divergence, context, store
        self.points, self._seconds = 0, -time.perf_counter()
        logger.info("Measuring the loss of the output at smaller widths of each of %d groups", len(found.groups))
        with inference(model), context():
            self._replay = Replay(model, batches, divergence.outputs)
            self.dense = self._replay.outputs if dense is None else dense
            self._start = _mean(divergence, self.dense, self._replay.outputs)
            outputs = self.dense, self._replay.outputs
            self._state = "" if store is None else _state(model, found, moments, batches, divergence, *outputs)
        changed = {group.name: _changed_modules(found, group) for group in found}
        order = decide_once(lambda: sorted(changed, key=lambda name: self._replay.moment(changed[name])))
        self._changed = {name: changed[name] for name in order}  # in the same order in all processes
        self._prepared, self._images = "", sum(map(divergence.images, self.dense))
        self._seconds += time.perf_counter()

    def measure(
        self, widths: Mapping[str, Sequence[int]], enough: float = math.inf, what: str = "measuring loss curves"
    ) -> dict[str, Curve]:
        """Measures losses.

        Args:
            widths: {group: widths in atoms, ascending and below the full one}.
            enough: a group's smaller widths are not measured once its loss exceeds this value.
            what: what the progress bar says.

        Returns:
            {group: its curve}, for each group that is named; losses in the divergence's unit (nats), 0 at the group's
            full width.
        """
        self._seconds -= time.perf_counter()
        losses: dict[str, dict[int, float]] = {name: {} for name in self._changed if name in widths}
        with inference(self.model), self.context():
            for name in with_progress(list(losses), what, len(losses)):
                losses[name] = until_enough(widths[name], enough, partial(self._loss, name))
        self.points += sum(map(len, losses.values()))
        self._seconds += time.perf_counter()
        return {name: Curve.of(name, self.found[name].size, losses[name]) for name in widths}

    def log(self) -> None:
        """Logs how many losses were measured, on how many images and in what time."""
        counted = self.points, self._images, self._seconds
        logger.info("Measured %d losses of groups at smaller widths on %d images in %.1f s", *counted)

    def _loss(self, name: str, width: int) -> float:
        """Returns the loss if one group alone is cut to a width, over the images of all processes."""
        if self.store is None:
            return _average(self._measured(name, width), self._images)
        key = fingerprint(self.found[name], self.orders[name], [width])
        known = self.store.get(self._state, key, 1)
        if known is None:
            known = [self._measured(name, width)]
            self.store.put(self._state, key, known)
        return _average(known[0], self._images)

    def _measured(self, name: str, width: int) -> float:
        """Measures the loss on the images of this process."""
        if self._prepared != name:
            self._replay.prepare(self._changed[name])
            self._prepared = name
        keep = np.ones(self.found.atoms, dtype=bool)
        gone = self.orders[name][: self.found[name].size - width].cpu().numpy()
        keep[self.found.spans[name].start + gone] = False
        copy = cut_copy(self.model, self.found, keep, self.moments, share_layers=True)
        outputs = [self._replay.run(copy, number) for number in range(len(self.batches))]
        return _mean(self.divergence, self.dense, outputs) - self._start


def until_enough(widths: Iterable[int], enough: float, loss: Callable[[int], float]) -> dict[int, float]:
    """Returns the loss at each width, {width: loss}, from the largest on until one exceeds `enough`."""
    losses: dict[int, float] = {}
    for width in sorted(widths, reverse=True):
        losses[width] = loss(width)
        if losses[width] > enough:
            break
    return losses


def measure_curves(meter: CurveMeter, limits: Limits = DEFAULT, levels: Iterable[float] = LEVELS) -> dict[str, Curve]:
    """Measures the loss curve of every group at a few shares of its channels.

    Args:
        meter: measures losses.
        limits: the widths that are allowed.
        levels: the shares of a group's atoms.

    Returns:
        {group: curve}.
    """
    curves = meter.measure({group.name: widths_near(group, limits, levels) for group in meter.found})
    meter.log()
    return curves


def _changed_modules(found: ChannelGroups, group: Group) -> set[str]:
    """Returns the names of the modules that compute something else if a group is cut.

    A module that contains some of them is left out. It may change in an attribute that tells other code the width of
    its output, such as timm's `num_features` and Detectron2's `_out_feature_channels`. Counted as a change, this would
    mean that nothing before it can be replaced.
    """
    keep = np.ones(found.atoms, dtype=bool)
    keep[found.spans[group.name]] = False
    names = touched_modules(found, keep)
    parents = {name[:end] for name in names for end in range(len(name)) if end == 0 or name[end] == "."}
    return names - parents


def widths_near(group: Group, limits: Limits, levels: Iterable[float]) -> list[int]:
    """Returns, for some shares of a group's atoms, the nearest of the allowed widths below the full one, ascending."""
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


def _average(loss: float, images: int) -> float:
    """Returns the mean of the losses of all processes.

    Args:
        loss: the loss of this process.
        images: its number of images, the weight in the mean.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return loss
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    total = torch.tensor([loss * images, images], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total[0] / total[1])


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
