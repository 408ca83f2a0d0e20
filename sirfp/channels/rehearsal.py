"""Tests a cut on a copy of a model: the copy must run and must compute the same as the masked copy."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import InputError
from ..network.forward import call, inference, tensors
from ..network.proposals import fixed_proposals
from ..structure.groups import ChannelGroups, Group
from ..structure.plan import PruningPlan
from ..surgery.cut import apply, cuts_for
from ..tracing import STATISTICS
from ..verify.detectors import continuous, is_detector, whole_layers
from ..verify.proof import furthest, mask, writable

logger = logging.getLogger(__name__)

ROUNDING = 1000
"""Largest difference of an output of the cut copy, in machine epsilons of its type, relative to its largest value.

Chosen, not measured: rounding errors add up over the layers of a network, while a wrong cut changes an output by a
visible share. For 16-bit types, 1000 epsilons are about the output itself or more, so `eps ** 0.5` is the limit."""
BOXES = 16
"""Boxes per image when a copy of a two-stage detector runs: its heads treat all boxes alike, so a few suffice."""


class CutCopy:
    """Cuts copies of a model and runs them; see `sirfp.channels.trial.freeze_failing` for the arguments."""

    def __init__(self, model: nn.Module, inputs: Any, output: Any, found: ChannelGroups):
        self.model, self.inputs, self.found = model, inputs, found
        self.shapes = _shapes(output)
        self.whole: list[str] | None = None  # for a detector: layers whose output no group cuts
        if is_detector(output):
            self.whole = whole_layers(model, {(s.tensor, s.dim) for group in found for s in group.slices})
        self._steady: bool | None = None

    def failure(self, groups: list[Group], turn: int = 0) -> str | None:
        """Cuts some channels of each group in a copy, runs it, and compares it with the model.

        Args:
            groups: the groups to cut.
            turn: number of the trial; each cuts other numbers of channels. Values are compared only in turn 0, and only
                if no group is inexact.

        Returns:
            The reason why the copy fails or computes something else, or None.

        Raises:
            InputError: the model cannot be copied.
        """
        keep = self._choice(groups, turn)
        plan = PruningPlan({}, {}, {}, (0, 0), (0, 0), cuts=cuts_for(self.found, keep))
        copied = self._copied()
        boxes: list[Any] = []
        expected: dict[str, torch.Tensor] | None = None
        exact = turn == 0 and not any(group.inexact for group in groups)
        if exact:
            expected = self._masked(copied, plan, boxes)
        log = StatisticsLog()
        try:
            apply(copied, plan)
            with nullcontext() if exact or self.whole is not None else log:
                values, output = self._run(copied, boxes, record=expected is None)
        except Exception as error:  # the model's own code may raise anything
            return f"cut, the model fails: {_one_line(error)}"
        got = _shapes(output)
        for path, shape in self.shapes.items():
            if path not in got:
                return f"cut, the model no longer returns {path}"
            if shape != got[path] and not _varies(path, shape, got[path]):
                return f"cut, the model returns {path} of {got[path]}, not {shape}"
        if expected is not None:
            where = _differs(expected, values)
            if where and self._is_steady(plan, expected):
                return f"cut, the model computes another {where} than with these channels zeroed"
        return self._regroups(keep, log.seen)

    def _copied(self) -> nn.Module:
        try:
            return copy.deepcopy(self.model)
        except Exception as error:  # e.g. a lock, an open file, a tensor with a gradient graph
            raise InputError(
                f"the model cannot be copied (copy.deepcopy: {_one_line(error)}); cuts are tried on copies"
            ) from error

    def _choice(self, groups: list[Group], turn: int) -> np.ndarray:
        """Chooses the atoms to keep, (atoms,) of bool: removes some of each group in `groups`."""
        keep = np.ones(self.found.atoms, dtype=bool)
        alike: dict[int, int] = {}
        for order, group in enumerate(groups):
            # Groups of equal size lose different numbers of atoms, so that code that assumes equal widths fails.
            count = alike[group.size] = alike.get(group.size, group.size // (3 + 2 * turn)) + 1
            gone = 1 + count % max(1, group.size // 2)
            part = keep[self.found.spans[group.name]]
            part[np.random.default_rng((turn, order)).permutation(group.size)[:gone]] = False
            if not part.any():
                part[0] = True
        return keep

    def _masked(self, copied: nn.Module, plan: PruningPlan, boxes: list[Any]) -> dict[str, torch.Tensor] | None:
        """Returns the outputs of a copy with its removed channels zeroed, or None if the masked copy fails."""
        randomise_constants(copied)
        mask(copied, plan)
        try:
            return self._run(copied, boxes, record=True)[0]
        except Exception as error:  # e.g. the model checks its values for NaN
            logger.debug("the masked model fails: %s", error)
            return None

    def _run(self, model: nn.Module, boxes: list[Any], *, record: bool) -> tuple[dict[str, torch.Tensor], Any]:
        with inference(model), fixed_proposals(model, BOXES):
            if self.whole is not None:
                return continuous(model, self.inputs, self.whole, boxes, record=record)
            output = call(model, self.inputs)
            return dict(tensors(output)), output

    def _regroups(self, keep: np.ndarray, seen: list[tuple[str, tuple[int, ...]]]) -> str | None:
        """Checks the shapes over which the cut copy computes statistics.

        A copy with another shape than that of the kept channels computes, for example, a mean over other sets of
        channels than the dense model.

        Returns:
            The reason if a shape differs, else None.
        """
        wanted = [(s.name, s.shape_of(keep)) for s in self.found.statistics]
        if [name for name, _ in wanted] != [name for name, _ in seen]:
            return None  # the copy took another path through the code, so the statistics cannot be compared
        odd = next(((a, b) for a, b in zip(wanted, seen, strict=True) if a != b), None)
        if odd is None or self._is_elastic():
            return None
        (name, shape), (_, got) = odd
        return f"cut, the model takes {name} over {got}, not {shape}"

    def _is_elastic(self) -> bool:
        """True if intermediate shapes depend on the data, e.g. on the number of boxes above a threshold."""
        copied, log = self._copied(), StatisticsLog()
        randomise_constants(copied)
        with torch.no_grad():
            for tensor in copied.parameters():
                tensor.mul_(0.9)
        try:
            with log:
                self._run(copied, [], record=True)
        except Exception as error:  # the model's own code may raise anything
            logger.debug("with other weights the model fails: %s", error)
        return log.seen != [(s.name, s.shape) for s in self.found.statistics]

    def _is_steady(self, plan: PruningPlan, expected: Mapping[str, torch.Tensor]) -> bool:
        """True if perturbing the weights by a few ulp leaves the masked copy's outputs unchanged.

        If not, as in a model that draws random numbers, comparing outputs proves nothing. Computed once per model.

        Args:
            plan: the plan whose removed channels are zeroed.
            expected: the masked copy's outputs without the perturbation.
        """
        if self._steady is None:
            copied = self._copied()
            boxes: list[Any] = []
            randomise_constants(copied)
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
    """Records each statistic that a model computes, as (operation, shape of its input), in `seen`."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `ChannelTrace`

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in STATISTICS:
            self.seen.append((func._schema.name, tuple(args[0].shape)))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def randomise_constants(model: nn.Module) -> None:
    """Fills the constant parameters and buffers of a model with random values, in place.

    Otherwise scales initialised with zero or a tiny value, as at the end of a residual branch, would hide a wrong cut.
    """
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
    """Returns the first output in `first` from which `second` differs by more than rounding, or an empty string.

    Outputs in `first` with NaN or infinite values are not compared.
    """
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
    """True for detections and proposals whose shapes differ only in the first dimension, their number."""
    return ("instances" in path or "proposals" in path) and a[1:] == b[1:]


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:160]}"
