"""Redundancy and importance in one clique: SIRFP's edge weights beside vertex weights; beyond the paper."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import nn

from ..structure.groups import Group
from .dcfp import DCFP
from .options import Within
from .registry import register
from .sirfp import SIRFP
from .taylor import Taylor


@register("sirfp_joint")
class SIRFPJoint(SIRFP):
    """The clique whose value is the redundancy of its pairs, as in `sirfp`, plus the importance of its vertices.

    A group keeps the set S for which `sum of a_ij over pairs in S + sum of v_i over S` is high: `a_ij` is minus the
    redundancy of two channels, `v_i = weight * scale * importance_i`. The greedy removes the channel that adds least
    to those still there, and what it adds then is its score. `scale` is one number for the whole network: the mean
    over all channels of the redundancy with the others of their group, divided by the mean importance. So at weight
    1 importance and redundancy have the same mean over the dense network, and differences between layers stay in both;
    at weight 0 this is `sirfp`. As a set shrinks, redundancy fades, and importance decides on the last channels.
    Groups without gradients get the highest importance, as in `taylor` and `dcfp`.

    Across layers channels are ranked by score over cost, as in the greedy solution of a knapsack: a budget in
    multiply-adds is spent on those that are worth most for each of them. With importance a root, so is cost: 0.5.

    Args:
        model: the model.
        groups: its channel groups.
        seed: not used.
        importance: taylor, the root of that criterion's score (the loss that a channel carries, to first order, root
            mean square over iterations; its square would let a few channels make the mean), or dcfp.
        importance_weight: weight of importance against redundancy: at 1 both have the same mean over the dense
            network, at 0 redundancy alone decides.
        cost_exponent: a channel's score is divided by its cost, in FLOPs, to this power; 0 ranks by score alone.
        **options: those of `sirfp`; `dcfp` shares its `ema`.
    """

    needs = "gradients"  # and features, which the forward pass before them gives

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Group],
        *,
        seed: int = 0,
        importance: Literal["taylor", "dcfp"] = "taylor",
        importance_weight: Annotated[float, Within(0)] = 30.0,
        cost_exponent: Annotated[float, Within(0)] = 0.5,
        **options: Any,
    ):
        super().__init__(model, groups, seed=seed, **options)
        self.importance_weight, self.cost_exponent = importance_weight, cost_exponent
        if importance == "taylor":
            self.importance: Taylor | DCFP = Taylor(model, self.groups)
        else:
            self.importance = DCFP(model, self.groups, ema=self.ema)

    def step(self) -> None:
        super().step()
        self.importance.step()

    def vertices(self) -> dict[str, torch.Tensor]:
        """The vertex weights of each group, {group name: (size,)} in float32."""
        values = self.importance.scores()
        if isinstance(self.importance, Taylor):
            values = {name: value.sqrt() for name, value in values.items()}
        matrices = [torch.stack(members).mean(0) for members in map(self._members, self.groups) if members]
        redundancy = torch.cat([m.abs().sum(1) - m.diagonal().abs() for m in matrices]).mean() if matrices else 1.0
        mean = torch.cat(list(values.values())).mean().clamp(min=torch.finfo(torch.float32).tiny)
        return {name: value / mean * redundancy * self.importance_weight for name, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"redundancy": super().state_dict(), "importance": self.importance.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["redundancy"])
        self.importance.load_state_dict(state["importance"])

    def reduce(self) -> None:
        super().reduce()
        self.importance.reduce()
