"""SIRFP: how little a channel's feature map repeats those of the channels that stay.

Wu et al., Structural Pruning via Spatial-aware Information Redundancy for Semantic Segmentation,
AAAI 2025; sections "Spatial-aware redundancy" and "Efficient heuristic greedy pruning" (Algorithm 1).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from torch import nn

from ..clique.search import greedy, local_search
from ..errors import InputError
from ..redundancy.average import RedundancyAverage, edge_weights
from ..structure.groups import Feature, Group
from .options import Within
from .registry import Criterion, features_of, register

logger = logging.getLogger(__name__)


@register("sirfp")
class SIRFP(Criterion):
    """Minus the sum of a channel's redundancies with the remaining channels when the greedy clique search removes it.

    The features are the outputs of the norm layers that a group runs through, before the activation. For a group
    without norm layers, they are the outputs of the convolutions or linear layers that make its channels.

    Args:
        model: the model.
        groups: its channel groups.
        seed: not used.
        ema: decay of the moving average over iterations.
        edge_weight: weight of the Sobel edge term of DCFP in the score (lambda); 0.2 to 0.4 on large images in the
            reference, 0 on ADE20K. Only useful with per_position false: otherwise redundancies are H x W times larger.
        edge_prefixes: prefixes of the names of groups that have the edge term. By default the groups whose names begin
            with backbone have it, as in the reference, or all groups if there is no such name.
        coupled: scoring of layers that share channels. graph scores the mean of their redundancy matrices; union (the
            reference) scores each layer alone and gives a channel its highest score; for local search a pair is then as
            redundant as in the layer in which it is least so.
        self_similarity: add the term i = j to the redundancy sum, as in the reference's code; the paper has no such
            term.
        normalize: the norm over positions that each map is divided by. The paper uses l1; with l2 redundancy is the
            cosine.
        per_position: multiply the redundancies of each image by the number of positions of its own maps. L1-normalised
            maps of P positions have inner products of about 1 / P. Without the factor (the paper), layers of low
            resolution therefore lose most of their channels.
        stride: use only every stride-th row and column of a map (at least 4 of each), other ones for each image of a
            batch and at each iteration: an estimate without bias over stride^2 iterations, for 1 / stride^2 of the
            cost.
        pooled: use globally pooled features instead of maps (an ablation).
        search: greedy (the paper) or local. local then exchanges channels within each layer, at the same width, until
            no exchange makes a better clique, with the edge term among the weights of its vertices.
    """

    needs = "features"

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Group],
        *,
        seed: int = 0,
        ema: Annotated[float, Within(0, 1, "[)")] = 0.99,
        edge_weight: Annotated[float, Within(0)] = 0.0,
        edge_prefixes: tuple[str, ...] = (),
        coupled: Literal["graph", "union"] = "graph",
        self_similarity: bool = False,
        normalize: Literal["l1", "l2"] = "l1",
        per_position: bool = True,
        stride: Annotated[int, Within(1)] = 3,
        pooled: bool = False,
        search: Literal["greedy", "local"] = "greedy",
    ):
        super().__init__(model, groups, seed=seed)
        if isinstance(edge_prefixes, str):
            edge_prefixes = (edge_prefixes,)
        self.edge_weight, self.edge_prefixes = edge_weight, tuple(edge_prefixes)
        self.coupled, self.self_similarity, self.per_position = coupled, self_similarity, per_position
        self.ema, self.search = ema, search
        edged = self._edged()
        self.averages = {
            f.module: RedundancyAverage(
                ema=ema,
                edges=f.module in edged,
                normalize=normalize,
                pooled=pooled,
                stride=stride,
                per_position=per_position,
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

    def _edged(self) -> set[str]:
        """Chooses the groups that have the edge term, and returns the modules whose edges it needs."""
        chosen = [g for g in self.groups if g.name.startswith(self.edge_prefixes or "backbone")]
        if self.edge_weight and not chosen and self.groups:
            if self.edge_prefixes:
                names = " or ".join(map(repr, self.edge_prefixes))
                logger.warning("edge_weight has no effect: no layer's name begins with %s (edge_prefixes)", names)
            else:
                logger.warning("edge_weight: no layer's name begins with 'backbone', so all layers have the edge term")
                chosen = list(self.groups)
        self._edges = {group.name for group in chosen if self.edge_weight}
        return {f.module for group in chosen if self.edge_weight for f in group.features}

    def matrix(self, group: Group) -> torch.Tensor:
        """Returns the redundancy matrix of a group, the mean over its features, (size, size) in float32."""
        return torch.stack(self._members(group)).mean(0)

    def scores(self) -> dict[str, torch.Tensor]:
        """Returns the worth of each channel. Groups without features get the highest score, so they are pruned last.

        Raises:
            InputError: no features were seen.
        """
        if self.averages and not any(average.images for average in self.averages.values()):
            what = f"no finite features, in {self.left_out} images" if self.left_out else "no features"
            raise InputError(
                f"criterion {self.name!r} has seen {what}: give calibration batches, put Accumulate in SIRFP.HOOKS, "
                "or run the model in training mode inside pruner.look()"
            )
        result, blind, vertices = {}, [], self.vertices()
        for group in self.groups:
            members = self._members(group)
            if not members:
                blind.append(group)
                continue
            edges = self._edge_terms(group)
            if self.coupled == "graph":
                members, edges = [torch.stack(members).mean(0)], [torch.stack(edges).mean(0)]
            vertex = vertices.get(group.name)
            score = torch.stack([self._clique(m, vertex) + e for m, e in zip(members, edges, strict=True)]).amax(0)
            result[group.name] = score
        top = max((float(score.max()) for score in result.values()), default=0.0)
        return result | {group.name: torch.full((group.size,), top) for group in blind}

    def vertices(self) -> dict[str, torch.Tensor]:
        """Returns vertex weights of groups, {group name: (size,)}; none here, where redundancy alone counts."""
        return {}

    def refine(self, group: Group, kept: torch.Tensor) -> torch.Tensor:
        if self.search == "greedy" or not self._seen(group):
            return kept
        matrix, edge = torch.stack(self._members(group)), torch.stack(self._edge_terms(group))
        if self.coupled == "graph":
            matrix, edge = matrix.mean(0), edge.mean(0)
        else:  # a channel stays if one of the layers wants it: a pair is as redundant as where it is least so
            matrix, edge = matrix.abs().amin(0), edge.amax(0)
        weights, vertices = self._weights(matrix, self.vertices().get(group.name))
        return local_search(weights, kept, edge if vertices is None else edge + vertices)[0]

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

    def _seen(self, group: Group) -> list[Feature]:
        return [f for f in group.features if self._average(f).images]

    def _members(self, group: Group) -> list[torch.Tensor]:
        """Returns the redundancies of a group's atoms in each of its features that was seen, (size, size) each."""
        return [_block(self._average(f).matrix().cpu(), f) for f in self._seen(group)]

    def _edge_terms(self, group: Group) -> list[torch.Tensor]:
        """Returns the edge term of a group's atoms in each of its features that was seen, (size,) each."""
        if group.name not in self._edges:
            return [torch.zeros(group.size) for _ in self._seen(group)]
        edges = [self._average(f).edge().cpu()[torch.as_tensor(f.index)] for f in self._seen(group)]
        return [self.edge_weight * edge.mean(1) for edge in edges]

    def _average(self, feature: Feature) -> RedundancyAverage:
        return self.averages[feature.module]

    @property
    def left_out(self) -> int:
        """Number of images with features that were not finite, in the layer that had most of them."""
        return max((average.skipped for average in self.averages.values()), default=0)

    def state_dict(self) -> dict[str, Any]:
        return {module: average.state_dict() for module, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        positions = {f.module: f.positions for f in self.features()}
        for module, average in self.averages.items():
            average.load_state_dict(state[module], positions[module])

    def reduce(self) -> None:
        for average in self.averages.values():
            average.reduce()


def _block(matrix: torch.Tensor, feature: Feature) -> torch.Tensor:
    """Returns the part of a module's matrix for a group's atoms.

    The redundancy of an atom of several channels with another is that of one of its channels, in the mean, with all
    channels of the other. Row sums then compare with those of atoms of one channel.
    """
    index = torch.as_tensor(feature.index)
    size, times = index.shape
    if times == 1 and size == len(matrix) and bool((index[:, 0] == torch.arange(size)).all()):
        return matrix
    flat = index.reshape(-1)
    block = matrix[flat][:, flat]
    return (block.abs() if times > 1 else block).reshape(size, times, size, times).sum(3).mean(1)
