"""Sizes that stand in a model's own code, found by trying: cut a copy, run it, freeze what it cannot miss.

A copy may fail, and it may run and compute something else: a part of fixed size that took the wrong channels, a scale
that follows the width. So the copy is run twice, with the removed channels zero and with them cut, and must say the
same.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .calling import call, inference, tensors
from .errors import InputError
from .groups import ChannelGroups, Frozen, Group
from .models.detections import continuous, is_detector, whole_layers
from .models.proposals import fixed_proposals
from .plan import PruningPlan
from .surgery import apply, cuts_for
from .tracing import STATISTICS
from .verify import furthest, mask, writable

logger = logging.getLogger(__name__)

HALVINGS = 1  # how often groups of one role are halved once one of them has failed
ROUNDING = 1000  # how many of its type's rounding errors an output may be off by, relative to its largest value


def runs_without(model: nn.Module, inputs: Any, output: Any, found: ChannelGroups) -> ChannelGroups:
    """Freezes the groups that the model's own code does not let go.

    A copy is cut in all groups and run. Where that fails the groups are tried by halves, each half on top
    of what is known to go, so a group is frozen only if the copy fails with it and runs without it. Once a group
    is, those of the same role in other blocks are tried last and together, since they mostly fail alike.
    Groups over which a statistic runs come after the others, whose outputs can be held to the masked copy's.

    Args:
        model: the dense model.
        inputs: what it is called with.
        output: what it returned.
        found: its groups.

    Returns:
        The groups that can be cut, the others among the frozen ones with the error as the reason.
    """
    trial = Trial(model, inputs, output, found)
    good: list[Group] = []
    bad: dict[str, str] = {}
    doubtful: dict[tuple, list[Group]] = {}

    def grow(candidates: list[Group]) -> None:
        for group in candidates:
            if _role(group) in doubtful:
                doubtful[_role(group)].append(group)
        candidates = [group for group in candidates if _role(group) not in doubtful]
        if not candidates:
            return
        error = trial.failure([*good, *candidates])
        if error is None:
            good.extend(candidates)
        elif len(candidates) == 1:
            bad[candidates[0].name] = error
            logger.info("%s stays whole: %s", candidates[0].name, error)
            doubtful[_role(candidates[0])] = []
        else:
            middle = len(candidates) // 2
            grow(candidates[:middle])
            grow(candidates[middle:])

    def settle(alike: list[Group], halvings: int) -> None:
        error = trial.failure([*good, *alike])
        if error is None:
            good.extend(alike)
        elif len(alike) == 1 or not halvings:
            bad.update((group.name, error) for group in alike)
        else:
            middle = len(alike) // 2
            settle(alike[:middle], halvings - 1)
            settle(alike[middle:], halvings - 1)

    for inexact in (False, True):
        grow([group for group in found.groups if bool(group.inexact) == inexact])
        for alike in doubtful.values():
            if alike:
                settle(alike, HALVINGS)
        doubtful.clear()
    return without(found, bad) if bad else found


def _role(group: Group) -> tuple:
    """What a group is in its block: the names of its tensors without their numbers."""
    return tuple(dict.fromkeys((re.sub(r"\d+", "#", piece.tensor), piece.dim) for piece in group.slices))


def without(found: ChannelGroups, bad: dict[str, str]) -> ChannelGroups:
    """The groups less some, which become frozen for a reason each."""
    spans, keep = found.spans, np.ones(found.atoms, dtype=bool)
    for name in bad:
        keep[spans[name]] = False
    place = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)
    return ChannelGroups(
        groups=tuple(g for g in found.groups if g.name not in bad),
        frozen=found.frozen + tuple(Frozen(g.name, g.size, bad[g.name]) for g in found.groups if g.name in bad),
        cost=found.cost.without(keep),
        sizes=found.sizes,
        emissions=tuple(replace(e, atoms=place[e.atoms]) for e in found.emissions),
        statistics=tuple(
            replace(s, atoms=tuple(None if a is None else place[a] for a in s.atoms)) for s in found.statistics
        ),
        widths={m: {f: place[a] for f, a in v.items()} for m, v in found.widths.items()},
    )


class Trial:
    """Cuts copies of a model and runs them; see `runs_without` for the arguments."""

    def __init__(self, model: nn.Module, inputs: Any, output: Any, found: ChannelGroups):
        self.model, self.inputs, self.found = model, inputs, found
        self.shapes = _shapes(output)
        self.whole: list[str] | None = None  # of a detector, the layers that no group makes
        if is_detector(model, output):
            self.whole = whole_layers(model, {(s.tensor, s.dim) for group in found for s in group.slices})
        self._steady: bool | None = None

    def failure(self, groups: list[Group]) -> str | None:
        """Why a copy cut in these groups does not run as the model does, or None."""
        keep = self._choice(groups)
        plan = PruningPlan({}, {}, {}, (0, 0), (0, 0), cuts=cuts_for(self.found, keep))
        copied, boxes = self._copied(), []
        expected, exact = None, not any(group.inexact for group in groups)
        if exact:
            expected = self._masked(copied, plan, boxes)
        log = StatisticsLog()
        try:
            apply(copied, plan)
            with nullcontext() if exact or self.whole is not None else log:
                values, output = self._run(copied, boxes, record=expected is None)
        except Exception as error:  # whatever the user's own code raises
            return f"cut, the model fails: {_one_line(error)}"
        got = _shapes(output)
        for path, shape in self.shapes.items():
            if path not in got:
                return f"cut, the model no longer returns {path}"
            if shape != got[path] and not _varies(path, shape, got[path]):
                return f"cut, the model returns {path} of {got[path]}, not {shape}"
        where = _differs(expected or {}, values)
        if where and self._is_steady(plan, expected):
            return f"cut, the model computes another {where} than with these channels zero"
        return self._regroups(keep, log.seen)

    def _copied(self) -> nn.Module:
        try:
            return copy.deepcopy(self.model)
        except Exception as error:  # a lock, a file, a tensor that was computed
            raise InputError(
                f"the model cannot be copied (copy.deepcopy: {_one_line(error)}); cuts are tried on copies"
            ) from error

    def _choice(self, groups: list[Group]) -> np.ndarray:
        """Atoms that stay, (atoms,) of bool, some of each group gone."""
        keep = np.ones(self.found.atoms, dtype=bool)
        alike: dict[int, int] = {}
        for order, group in enumerate(groups):
            # groups of one size that the code takes for equally wide must show it: neighbours lose unlike numbers
            count = alike[group.size] = alike.get(group.size, group.size // 3) + 1
            gone = 1 + count % max(1, group.size // 2)
            part = keep[self.found.spans[group.name]]
            part[np.random.default_rng(order).permutation(group.size)[:gone]] = False
            if not part.any():
                part[0] = True
        return keep

    def _masked(self, copied: nn.Module, plan: PruningPlan, boxes: list[Any]) -> dict[str, torch.Tensor] | None:
        """What a copy gives once its removed channels are zero; None where it cannot run so."""
        stir(copied)
        mask(copied, plan)
        try:
            return self._run(copied, boxes, record=True)[0]
        except Exception as error:  # e.g. a check of the model's own for values that are not finite
            logger.debug("the masked model fails: %s", error)
            return None

    def _run(self, model: nn.Module, boxes: list[Any], *, record: bool) -> tuple[dict[str, torch.Tensor], Any]:
        with inference(model), fixed_proposals(model):
            if self.whole is not None:
                return continuous(model, self.inputs, self.whole, boxes, record=record)
            output = call(model, self.inputs)
            return dict(tensors(output)), output

    def _regroups(self, keep: np.ndarray, seen: list[tuple[str, tuple[int, ...]]]) -> str | None:
        """Why statistics of the cut copy run over other sets than the channels that are left of the dense one's."""
        wanted = [(s.name, s.shape_of(keep)) for s in self.found.statistics]
        if [name for name, _ in wanted] != [name for name, _ in seen]:
            return None  # another way through the code, which tells nothing
        odd = next(((a, b) for a, b in zip(wanted, seen, strict=True) if a != b), None)
        if odd is None or self._is_elastic():
            return None
        (name, shape), (_, got) = odd
        return f"cut, the model takes {name} over {got}, not {shape}"

    def _is_elastic(self) -> bool:
        """Whether shapes inside the model hang on values, as of what a threshold lets pass."""
        copied, log = self._copied(), StatisticsLog()
        stir(copied)
        with torch.no_grad():
            for tensor in copied.parameters():
                tensor.mul_(0.9)
        try:
            with log:
                self._run(copied, [], record=True)
        except Exception as error:  # whatever the user's own code raises
            logger.debug("with other weights the model fails: %s", error)
        return log.seen != [(s.name, s.shape) for s in self.found.statistics]

    def _is_steady(self, plan: PruningPlan, expected: Mapping[str, torch.Tensor]) -> bool:
        """Whether rounding errors leave the outputs as they are; else, as where chance is used, values tell nothing."""
        if self._steady is None:
            copied, boxes = self._copied(), []
            stir(copied)
            mask(copied, plan)
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for tensor in copied.parameters():
                    if tensor.is_floating_point():
                        noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                        tensor.mul_(1 + 8 * torch.finfo(tensor.dtype).eps * noise)
            again, _ = self._run(copied, boxes, record=True)
            self._steady = not _differs(expected, again)
        return self._steady


class StatisticsLog(TorchDispatchMode):
    """Notes over what shapes a model takes statistics, in `seen`."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see ChannelTrace

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in STATISTICS:
            self.seen.append((func._schema.name, tuple(args[0].shape)))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def stir(model: nn.Module) -> None:
    """Makes the constant tensors of a model vary, in place: what a zero or a millionth hides, as the scales that start
    a residual branch do, shows after it."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_floating_point() or tensor.numel() < 2 or not writable(tensor):
            continue
        if tensor.min() == tensor.max():
            sides = sorted(tensor.shape)
            if len(sides) > 1 and sides[-2] > 1:
                values = torch.randn(tensor.shape, generator=generator) * (tensor.shape[0] / tensor.numel()) ** 0.5
            else:
                values = torch.rand(tensor.shape, generator=generator) + 0.5
            tensor.copy_(values)


def _differs(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> str:
    """Which of the finite outputs in `first` is not the same in `second` but for rounding; an empty string if none."""
    for path, tensor in first.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            continue
        if path not in second or tensor.shape != second[path].shape:
            return path
        eps = torch.finfo(tensor.dtype).eps
        if not furthest({path: tensor}, second).relative <= min(ROUNDING * eps, eps**0.5):
            return path
    return ""


def _shapes(output: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(t.shape) for path, t in tensors(output)}


def _varies(path: str, a: tuple, b: tuple) -> bool:
    """Detections: their number, the first dimension, may differ."""
    return "instances" in path and a[1:] == b[1:]


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:160]}"
