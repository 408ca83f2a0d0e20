"""Chooses how outputs are compared with those of the dense network: by the network's class, or as the user says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .divergence_detectors import DenseDivergence
from .divergence_regions import RegionDivergence
from .divergence_semantic import SegmentorDivergence
from .divergence_terms import Divergence, exact
from .forward import call, evaluation
from .held_out import count_images

__all__ = ["Divergence", "divergence_for"]


def divergence_for(
    model: nn.Module,
    divergence: Callable[[Any, Any], torch.Tensor] | None = None,
    run: Callable[[nn.Module, Any], Any] = call,
) -> Divergence:
    """Returns the divergence that fits a model.

    Args:
        model: the dense network: one of Detectron2, or any module.
        divergence: replaces the measure: a function of the raw outputs of the dense network and of another one, which
            returns a tensor with one value, 0 for equal outputs.
        run: `run(model, batch)` calls a network that is not Detectron2's.
    """
    if divergence is not None:
        return _Custom(divergence, run)
    kinds = {kind.__name__ for kind in type(model).__mro__ if kind.__module__.startswith("detectron2.")}
    if "DenseDetector" in kinds:
        return DenseDivergence(model)
    if kinds & {"GeneralizedRCNN", "ProposalNetwork"}:
        return RegionDivergence(model)
    if "SemanticSegmentor" in kinds:
        return SegmentorDivergence()
    return Divergence(run)


class _Custom(Divergence):
    """A user's divergence of raw outputs; `outputs` holds one element, the network's raw output."""

    sampled = False

    def __init__(self, divergence: Callable[[Any, Any], torch.Tensor], run: Callable[[nn.Module, Any], Any] = call):
        super().__init__(run)
        self.divergence = divergence

    def outputs(self, model: nn.Module, batch: Any) -> list[Any]:
        with evaluation(model):
            return [self.run(model, batch)]

    def images(self, outputs: Sequence[Any]) -> int:
        return count_images(outputs[0])

    def _advice(self) -> str:
        return "mend the function given as divergence"

    def _value(self, dense: Sequence[Any], other: Sequence[Any]) -> torch.Tensor:
        value = self.divergence(dense[0], other[0])
        if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.is_floating_point():
            kind = f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(f"the function given as divergence must return one floating-point number, got {kind}")
        return exact(value).reshape(())

    def probe(self, outputs: Sequence[Any], generator: torch.Generator) -> torch.Tensor:
        raise InputError("a divergence of your own has no random gradients; give labels, or leave out divergence=")
