"""Records the sizes that a model's code gives during a trace, with the channels of each size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..network.call_sites import Place
from ..network.forward import tensors
from ..network.size_calls import MAKERS, SizesIn
from ..network.sizes import names_in_code
from ..network.walk import walk
from ..structure.groups import INPUT, SizeCall
from ..tracing import ChannelTrace

STATE = 2**20
"""Number of elements up to which a tensor that the code makes may be the first hidden state of a recurrent layer, and
is held until the pass ends."""


class SizeLog:
    """Records calls for `SizeWatch`; only those whose result holds channels.

    Calls of PyTorch's convolutions and norms with weights are left out: a cut sets their sizes from the weights.

    Args:
        model: the model that runs.
        trace: the trace that labels the channels.

    Attributes:
        calls: the calls in evaluation mode in order, with labels in place of atoms; see `finished`.
        training: those in training mode.
    """

    def __init__(self, model: nn.Module, trace: ChannelTrace):
        self.trace = trace
        self._fitting = {
            name
            for name, module in walk(model)
            if isinstance(module, (nn.modules.conv._ConvNd, nn.LayerNorm))
            and "weight" in module._parameters
            and module.weight is not None
        }
        self.calls: list[SizeCall] = []
        self.training: list[SizeCall] = []
        self._rounds: dict[tuple, int] = {}  # number of calls of each mode and site, those without channels included
        self._names: dict[type[nn.Module], frozenset[str]] = {}
        # (the calls of a mode, index of the call, its result), for expanded views and tensors that the code makes
        self._expanded: list[tuple[list[SizeCall], int, torch.Tensor]] = []
        self._made: list[tuple[list[SizeCall], int, torch.Tensor]] = []

    def seen(self, place: Place, given: SizesIn, x: Any, make: Callable[[list], Any]) -> Any:
        """Makes a call as the code gives it, and records it."""
        out = make(given.sizes)
        if place.module in self._fitting or not all(isinstance(n, int) for n in given.sizes):
            return out
        calls = self.calls if self.trace.counting else self.training
        site = calls is self.training, place.first
        self._rounds[site] = max(self._rounds.get(site, 0), place.round + 1)
        if given.function in MAKERS:
            if out.is_floating_point() and 1 < out.numel() <= STATE and out.dim() == len(given.sizes):
                self._made.append((calls, len(calls), out))
                none = (None,) * out.dim()
                calls.append(SizeCall(place, tuple(given.sizes), none, (False,) * out.dim(), None))
            return out
        labels, first = _labels(self.trace, given, x, out)
        split = self.trace.split_by(out) if isinstance(out, torch.Tensor) else None
        axes = split[1] if split else []
        fixed = tuple(d is None and first + i in axes for i, d in enumerate(labels))
        if given.function == "expand":
            self._expanded.append((calls, len(calls), out))
        if any(d is not None for d in labels) or any(fixed) or given.function == "expand":
            calls.append(SizeCall(place, tuple(given.sizes), tuple(labels), fixed, split[0] if split else None))
        return out

    def entered(self, name: str, module: nn.Module, inputs: tuple) -> None:
        """Records the widths of a module's inputs that an integer attribute holds and its code reads.

        Code such as `assert x.shape[-1] == self.dim` fails after a cut, unless the attribute is set.
        """
        if not self.trace.counting:
            return
        if type(module) not in self._names:
            self._names[type(module)] = names_in_code(module)
        names = self._names[type(module)]
        numbers = {n for key, n in vars(module).items() if type(n) is int and key in names}
        for _, tensor in tensors(inputs) if numbers else ():
            for labels in self.trace.dims(tensor):
                if labels is not None and len(labels) in numbers:
                    numbers.remove(len(labels))
                    self.calls.append(SizeCall(Place(name, INPUT), (len(labels),), (labels,), (False,), None))

    def finished(self) -> list[SizeCall]:
        """Returns the calls, with the channels that expanded dimensions and hidden states met after the call.

        Calls in training mode are returned of the modules that make other calls there than in evaluation mode.
        """
        for calls, index, out in self._expanded:
            known = calls[index]
            met = self.trace.broadcast(out)
            first = out.dim() - len(known.sizes)
            atoms = tuple(met.get(first + i) if a is None else a for i, a in enumerate(known.atoms))
            calls[index] = replace(known, atoms=atoms)
        for calls, index, out in self._made:
            calls[index] = replace(calls[index], atoms=tuple(self.trace.dims(out)))
        self._expanded.clear()
        self._made.clear()
        for training, calls in ((False, self.calls), (True, self.training)):
            rounds = [self._rounds.get((training, c.place.first), 1) for c in calls]
            calls[:] = [c if n == c.rounds else replace(c, rounds=n) for c, n in zip(calls, rounds, strict=True)]
        modes = [_by_module(calls) for calls in (self.calls, self.training)]
        other = [name for name in modes[1] if modes[1][name] != modes[0].get(name)]
        return self.calls + [replace(c, training=True) for c in self.training if c.place.module in other]


def _by_module(calls: list[SizeCall]) -> dict[str, list]:
    """Returns the places and the sizes of the calls of each module."""
    found: dict[str, list] = {}
    for call in calls:
        if call.place.function != INPUT:
            found.setdefault(call.place.module, []).append((call.place, call.sizes))
    return found


def _labels(trace: ChannelTrace, given: SizesIn, x: Any, out: Any) -> tuple[list, int]:
    """Returns the labels of each dimension that a call gives the size of, and the first of these dimensions.

    A dimension without channels has None for its labels.
    """
    count = len(given.sizes)
    none: tuple[list, int] = [None] * count, 0
    if not isinstance(x, torch.Tensor):
        return none
    if given.function == "getitem":  # a bound has the labels before it
        bounds = zip(given.axes, given.sizes, strict=True)  # a bound behind the end stays right
        return [_before(trace.dim(x, axis), bound) if bound <= x.shape[axis] else None for axis, bound in bounds], 0
    if given.function == "groups":  # of a depthwise convolution
        return [trace.dim(x, 1) if given.sizes[0] == x.shape[1] > 1 else None], 0
    if given.function in ("narrow", "tensor_split"):
        part = out if isinstance(out, torch.Tensor) else out[0]
        axis = next((i for i, n in enumerate(part.shape) if n != x.shape[i]), None)
        if axis is None:
            return none
        labels = trace.dim(x, axis)
        if given.function == "tensor_split":
            return [_before(labels, bound) for bound in given.sizes], 0
        return [_before(labels, given.sizes[0]), trace.dim(part, axis)], 0
    if given.function == "layer_norm":
        return trace.dims(x)[-count:], x.dim() - count
    if given.function == "split":
        axis = next((i for i, n in enumerate(out[0].shape) if n != x.shape[i]), None)
        parts = out if len(out) == count else out[:1]
        return none if axis is None or len(parts) != count else ([trace.dim(part, axis) for part in parts], axis)
    if given.function == "unflatten":
        axis = next((i for i, n in enumerate(x.shape) if n != out.shape[i]), x.dim() - 1)
        return trace.dims(out)[axis : axis + count], axis
    return (trace.dims(out), 0) if out.dim() == count else none


def _before(labels: np.ndarray | None, bound: int) -> np.ndarray | None:
    return None if labels is None or not 0 <= bound <= len(labels) else labels[:bound]
