"""Results of runs of copies, and how those of a cut copy differ from those of the masked copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..network.forward import tensors
from ..verify.choices import Choices, tolerance


@dataclass
class Run:
    """Results of one run of a copy.

    Attributes:
        output: the model's output.
        layers: the outputs of the layers that no group cuts, by name and number of the call.
        statistics: (operation, shape of its input) of each statistic, in order; for a masked copy the kept part.
        choices: the discrete choices of the run.
        values: the tensors in the output by path.
    """

    output: Any
    layers: dict[str, torch.Tensor]
    statistics: list[tuple[str, tuple[int, ...]]]
    choices: Choices
    values: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.values = dict(tensors(self.output))


STATISTICS = "statistics"
"""Name of the sequence of statistics among the results of a run."""


def differences(wanted: Run, got: Run, *, detector: bool) -> Iterator[tuple[str, str]]:
    """Yields the results of a cut copy that differ from those of the masked copy.

    Args:
        wanted: the masked copy's run.
        got: the cut copy's run.
        detector: True for Detectron2's detectors, of whose results only layers are compared: the number of instances
            may differ.

    Yields:
        (name of the result, the reason why the cut is wrong).
    """
    yield from misshapen(wanted.values, got.values)
    pairs = list(zip(wanted.statistics, got.statistics, strict=False))
    if [a[0] for a in wanted.statistics] == [b[0] for b in got.statistics]:
        for (name, shape), (_, other) in pairs:
            if shape != other:
                yield STATISTICS, f"cut, the model takes {name} over {other}, not {shape}"
                break
    for path, size, allowed in sizes(wanted, got, detector=detector):
        if size > allowed:
            yield path, f"cut, the model computes another {path} than with these channels zeroed"


def sizes(wanted: Run, got: Run, *, detector: bool) -> Iterator[tuple[str, float, float]]:
    """Yields the size of each difference between the values of two runs.

    Args:
        wanted, got, detector: as in `differences`.

    Yields:
        (name of the result, its largest difference relative to its largest value, the largest that rounding errors
        explain in its type).
    """
    values = {} if detector else wanted.values
    for first, second in ((values, got.values), (wanted.layers, got.layers)):
        for path, tensor in first.items():
            if path in second and tensor.shape == second[path].shape and is_comparable(tensor):
                yield path, difference(tensor, second[path]), tolerance(tensor.dtype)


def misshapen(wanted: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> Iterator[tuple[str, str]]:
    """Yields (path, reason) of the outputs that a cut copy lacks or returns in another shape than wanted."""
    for path, tensor in wanted.items():
        if path not in got:
            yield path, f"cut, the model no longer returns {path}"
        elif not fits(path, tensor, got[path]):
            yield path, shape_reason(path, tensor, got[path])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Returns the largest difference of two tensors of one shape, relative to the largest finite value of the first.

    NaN in the first is not compared; infinite if the second has other values that are not finite.
    """
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    unequal = ~(a.isnan() | (a == b))
    scale = torch.where(a.isfinite(), a, 0).abs().max().clamp_min(1e-12)
    return float(torch.where(unequal, (a - b).abs(), 0).nan_to_num(nan=torch.inf).max() / scale)


def is_comparable(tensor: torch.Tensor) -> bool:
    """True for a tensor of numbers that is not empty."""
    return bool(tensor.numel()) and (tensor.is_floating_point() or tensor.is_complex())


def fits(path: str, a: torch.Tensor, b: torch.Tensor) -> bool:
    """True for two tensors of one shape, and for detections and proposals that differ in their number only."""
    return a.shape == b.shape or (("instances" in path or "proposals" in path) and a.shape[1:] == b.shape[1:])


def shape_reason(path: str, a: torch.Tensor, b: torch.Tensor) -> str:
    """Returns the reason why a cut is wrong that changes the shape of an output from that of `a` to that of `b`."""
    return f"cut, the model returns {path} of {tuple(b.shape)}, not {tuple(a.shape)}"
