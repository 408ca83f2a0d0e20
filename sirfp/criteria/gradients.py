"""The base class of criteria that use gradients: running sums over iterations, saved, resumed and reduced."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ..errors import InputError
from .registry import Criterion


class GradientCriterion(Criterion):
    """A criterion with running sums over iterations: float32 vectors, each with a count of its iterations.

    `step` must read gradients of the loss alone: after `backward`, unscaled (float16) and averaged over processes, but
    before they are clipped and before a penalty is added. The hook `Accumulate` calls it at this point. Iterations with
    a gradient that is not finite are skipped; the check does not synchronise the device.

    Attributes:
        sums: {name: running sum, (n,) in float32}.
        counts: {name: number of iterations that had a finite gradient, () in float32}.
    """

    needs = "gradients"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor] = {}

    def _start(self, name: str, size: int) -> None:
        self.sums.setdefault(name, torch.zeros(size))
        self.counts.setdefault(name, torch.zeros(()))

    def _count(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Counts an iteration if its values are finite, and moves the sums to their device.

        Returns:
            True if all values are finite, () of bool.
        """
        if self.sums[name].device != values.device:
            self.sums[name], self.counts[name] = self.sums[name].to(values.device), self.counts[name].to(values.device)
        finite = values.isfinite().all()
        self.counts[name] += finite
        return finite

    def _whole(self, scores: dict[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """Sets the scores of groups that had no gradient (None) to the highest score, so that they are pruned last.

        Raises:
            InputError: no group had a gradient.
        """
        if self.groups and not any(score is not None for score in scores.values()):
            raise InputError(
                f"criterion {self.name!r} has seen no gradients: give calibration batches, put Accumulate in "
                "SIRFP.HOOKS, or do forward and backward passes in training mode inside pruner.look()"
            )
        top = max((float(score.max()) for score in scores.values() if score is not None), default=0.0)
        sizes = {group.name: group.size for group in self.groups}
        return {n: torch.full((sizes[n],), top) if s is None else s.cpu() for n, s in scores.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.sums:
            self.sums[name], self.counts[name] = state["sums"][name].clone(), state["counts"][name].clone()

    def reduce(self) -> None:
        """Averages the sums over all processes. This changes nothing if the gradients were already averaged."""
        if not dist.is_available() or not dist.is_initialized():
            return
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        for kept in (self.sums, self.counts):
            for name, tensor in kept.items():
                kept[name] = tensor.to(device)
                dist.all_reduce(kept[name])
                kept[name] /= dist.get_world_size()
