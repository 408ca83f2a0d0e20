"""SIRFP: how little a channel's feature map repeats those of the channels that stay.

Wu et al., Structural Pruning via Spatial-aware Information Redundancy for Semantic Segmentation,
AAAI 2025; sections "Spatial-aware redundancy" and "Efficient heuristic greedy pruning" (Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..clique.search import greedy, local_search
from ..errors import InputError
from ..redundancy.average import RedundancyAverage, edge_weights
from ..structure.groups import Feature, Group
from .registry import Criterion, features_of, register

STRIDE = 3
"""Of maps, statistics take every so many rows and columns, others at each iteration: an unbiased estimate for a ninth
of the cost (`sirfp.redundancy.similarity`). Each axis keeps 4 positions at least."""


@register("sirfp")
class SIRFP(Criterion):
    """Minus the redundancy sum of each channel at the moment the greedy clique removes it.

    The features are the outputs of the normalisation layers a group runs through, before the activation;
    a group without any is seen at the convolutions or linear layers that make it.

    Args:
        model: the model.
        groups: its channel groups.
        seed: not used.
        ema: decay of the average over iterations, alpha in the paper (0.99).
        edge_weight: lambda, the weight of the Sobel edge term of DCFP in the score (0.2 to 0.4 on large
            images in the reference, 0 on ADE20K). Its scale is that of raw redundancies: beside those of
            `per_position`, as many times as large as a map has positions, such a weight has no say.
        edge_prefixes: groups whose names begin so get the edge term (the reference: the backbone's).
        coupled: how layers that share channels share one choice: "graph" makes one matrix of them, the mean of
            the members'; "union" (the reference) scores each member alone, and a channel's worth is the
            highest that any member gives it.
        self_similarity: whether the redundancy sum has the term i = j (the reference's code has, the paper has
            not).
        normalize: "l1" (the paper) or "l2" (cosine) normalisation of each map.
        per_position: multiply a layer's redundancies by the positions of its maps. L1-normalised maps of P positions
            have inner products of about 1 / P, so that without it (the paper) layers of low resolution lose most of
            theirs.
        stride: look at every stride-th row and column of a map, others at each iteration, for 1 / stride^2 of the cost.
        pooled: look at globally pooled features instead of maps (an ablation).
        search: "greedy" (the paper), or "local" to exchange channels of each layer, its width once chosen, until no
            exchange makes a better clique.
    """

    needs = "features"

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Group],
        *,
        seed: int = 0,
        ema: float = 0.99,
        edge_weight: float = 0.0,
        edge_prefixes: tuple[str, ...] = ("backbone",),
        coupled: str = "graph",
        self_similarity: bool = False,
        normalize: str = "l1",
        per_position: bool = True,
        stride: int = STRIDE,
        pooled: bool = False,
        search: str = "greedy",
    ):
        super().__init__(model, groups, seed=seed)
        if coupled not in ("graph", "union"):
            raise InputError(f"coupled must be graph or union, got {coupled!r}")
        if search not in ("greedy", "local"):
            raise InputError(f"search must be greedy or local, got {search!r}")
        if not 0 <= ema < 1:
            raise InputError(f"ema must lie in [0, 1), got {ema}")
        if isinstance(edge_prefixes, str):
            edge_prefixes = (edge_prefixes,)
        self.edge_weight, self.edge_prefixes = edge_weight, tuple(edge_prefixes)
        self.coupled, self.self_similarity, self.per_position = coupled, self_similarity, per_position
        self.search = search
        self.averages = {
            f.module: RedundancyAverage(
                ema=ema, edges=edge_weight != 0, normalize=normalize, pooled=pooled, stride=stride
            )
            for f in self.features()
        }

    def features(self) -> tuple[Feature, ...]:
        return features_of(self.groups)

    def observe(self, feature: Feature, x: torch.Tensor) -> None:
        self.averages[feature.module].update(x)

    def step(self) -> None:
        for average in self.averages.values():
            average.step()

    def matrix(self, group: Group) -> torch.Tensor:
        """The redundancy matrix of a group, the mean of its members', (size, size) in float32."""
        return torch.stack(self._members(group)).mean(0)

    def scores(self) -> dict[str, torch.Tensor]:
        """The worth of each channel; a group that no module shows (none is known to) is kept to the last.

        Raises:
            InputError: if no features were seen.
        """
        if self.averages and not any(average.images for average in self.averages.values()):
            what = f"no finite features, in {self.left_out} images" if self.left_out else "no features"
            raise InputError(
                f"criterion {self.name!r} has seen {what}: give calibration batches, or put Accumulate in SIRFP.HOOKS"
            )
        result, blind, vertices = {}, [], self.vertices()
        for group in self.groups:
            members = self._members(group)
            if not members:
                blind.append(group)
                continue
            if self.coupled == "graph":
                members = [torch.stack(members).mean(0)]
            score = torch.stack([self._clique(m, vertices.get(group.name)) for m in members]).amax(0)
            if self.edge_weight and group.name.startswith(self.edge_prefixes):
                score = score + self.edge_weight * self._edge(group)
            result[group.name] = score
        top = max((float(score.max()) for score in result.values()), default=0.0)
        return result | {group.name: torch.full((group.size,), top) for group in blind}

    def vertices(self) -> dict[str, torch.Tensor]:
        """Vertex weights of groups, {group name: (size,)}; redundancy alone has none."""
        return {}

    def refine(self, group: Group, kept: torch.Tensor) -> torch.Tensor:
        if self.search == "greedy" or not self._members(group):
            return kept
        weights, vertices = self._weights(self.matrix(group), self.vertices().get(group.name))
        return local_search(weights, kept, vertices)[0]

    def _weights(self, matrix: torch.Tensor, vertices: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        weights = edge_weights(matrix, self_similarity=self.self_similarity)
        if self.self_similarity:
            vertices = weights.diagonal() + (0 if vertices is None else vertices)
        return weights, vertices

    def _clique(self, matrix: torch.Tensor, vertices: torch.Tensor | None = None) -> torch.Tensor:
        weights, vertices = self._weights(matrix, vertices)
        order, score = greedy(weights, vertex_weights=vertices)
        result = torch.empty(len(order), dtype=torch.float32)
        result[order.cpu()] = score.float().cpu()
        return result

    def _members(self, group: Group) -> list[torch.Tensor]:
        seen = [f for f in group.features if self._average(f).images]
        return [_block(self._average(f).matrix().cpu() * (f.positions if self.per_position else 1), f) for f in seen]

    def _edge(self, group: Group) -> torch.Tensor:
        seen = [f for f in group.features if self._average(f).images]
        edges = [self._average(f).edge().cpu()[torch.as_tensor(f.index)].mean(1) for f in seen]
        return torch.stack(edges).mean(0)

    def _average(self, feature: Feature) -> RedundancyAverage:
        return self.averages[feature.module]

    @property
    def left_out(self) -> int:
        """Images with features that were not finite, in the layer that saw most of them."""
        return max((average.skipped for average in self.averages.values()), default=0)

    def state_dict(self) -> dict[str, Any]:
        return {module: average.state_dict() for module, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for module, average in self.averages.items():
            average.load_state_dict(state[module])

    def reduce(self) -> None:
        for average in self.averages.values():
            average.reduce()


def _block(matrix: torch.Tensor, feature: Feature) -> torch.Tensor:
    """The part of a module's matrix that a group's atoms have, mean over the channels of each atom."""
    index = torch.as_tensor(feature.index)
    size, times = index.shape
    if times == 1 and size == len(matrix) and bool((index[:, 0] == torch.arange(size)).all()):
        return matrix
    flat = index.reshape(-1)
    return matrix[flat][:, flat].reshape(size, times, size, times).mean((1, 3))
