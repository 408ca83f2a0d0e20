"""SIRFP with importance: redundancies as edge weights, importances as vertex weights of a clique. Not in the paper."""

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
    """The clique whose value adds the redundancy of its pairs, as in `sirfp`, and the importance of its vertices.

    A group keeps a set S with a high value of `sum of a_ij over pairs in S + sum of v_i over S`. `a_ij` is minus the
    redundancy of two channels; `v_i = weight * scale * importance_i`. The greedy search removes the channel that adds
    least to the value of the remaining set. This contribution is the channel's score.

    `scale` is one number for the whole network: the mean redundancy of a channel with the others of its group, divided
    by the mean importance. At weight 1 importance and redundancy therefore have the same mean over the dense network,
    and both keep their differences between layers. At weight 0 this criterion is `sirfp`. As a set shrinks, redundancy
    fades, and importance decides on the last channels. Groups without gradients get the highest importance, as in
    `taylor` and `dcfp`.

    Across layers, channels are ranked by score divided by a power of cost, as in the greedy solution of a knapsack
    problem: the budget goes to the channels that are worth most per multiply-add. The power is 0.5 because importance
    is a square root.

    Args:
        model: the model.
        groups: its channel groups.
        seed: not used.
        importance: taylor or dcfp. taylor is the square root of that criterion's score: the root mean square over
            iterations of the loss change without the channel, to first order. Without the root, a few channels would
            make up the mean.
        importance_weight: weight of importance relative to redundancy. At 1 both have the same mean over the dense
            network; at 0 only redundancy counts.
        cost_exponent: a channel's score is divided by its cost, in FLOPs, to this power; 0 ranks by score alone.
        **options: the options of `sirfp`; `dcfp` uses the same `ema`.
    """

    needs = "gradients"  # and features, collected in the forward pass

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
        """Returns the vertex weights of each group, {group name: (size,)} in float32."""
        values = self.importance.scores()
        if not values:
            return {}
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
