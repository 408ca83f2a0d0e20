"""SIRFP with set-wise redundancy: how well all channels that stay replace a removed one, in the layers that read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..moments.inputs import InputMoments, Moments
from ..redundancy.elimination import Reader, eliminate
from ..redundancy.exchange import exchange
from ..redundancy.symmetric import COLUMNS, copy_below
from ..reporting.progress import with_progress
from ..structure.groups import ChannelGroups, Emission, Group
from .magnitude import Magnitude
from .options import Within
from .registry import Criterion, register
from .taylor import Taylor

FLOOR = 1e-4
"""This share of the mean variance of a layer's input is added to each variance, so that constant channels have one."""
Layers = tuple[str, ...]
"""The names of the weights of layers that read the same input."""


@register("sirfp_setwise")
class Setwise(Criterion):
    """The error that a channel's removal adds if the layers that read it are refitted to the channels that stay.

    Channels are eliminated one by one, the one with the least error first (`sirfp.redundancy.elimination`). The errors
    of all layers that read a group are added. Pairwise redundancy (`sirfp`) asks how well one other channel repeats a
    channel; this criterion asks how well all others together do, on the same feature maps, and how much the network's
    output depends on what is lost.

    It needs no statistics of training iterations: before a cut, some batches are run for the covariance of the layers'
    inputs, which the refit takes too, and for that of the gradients at their outputs. Groups that no ungrouped
    convolution or linear layer reads are scored by Taylor importance (`taylor`) from the same gradients, or by
    magnitude if there are none.

    Errors are those of the divergence from the dense network. Within a group they order the channels; across groups
    they compare badly, so widths by measured loss curves (SIRFP.WIDTHS curves) fit this criterion best.

    Args:
        model: the model.
        groups: its channel groups.
        seed: the seed of the random gradients.
        ridge: this share of each input channel's variance is added to it.
        output_gradients: weigh errors by the covariance of gradients at the layers' outputs. The gradients sample the
            Hessian of the divergence from the dense network and need no labels. If False, all outputs count alike.
        search: greedy or local. local then exchanges channels within each group, at the same width, each time the pair
            that lessens the error most (`sirfp.redundancy.exchange`).
    """

    needs = "moments"
    cost_exponent = 1.0
    widths = "curves"

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[Group],
        *,
        seed: int = 0,
        ridge: Annotated[float, Within(0, 1)] = 0.01,
        output_gradients: bool = True,
        search: Literal["greedy", "local"] = "greedy",
    ):
        super().__init__(model, groups, seed=seed)
        self.ridge, self.output_gradients, self.search = ridge, output_gradients, search
        self._orders: dict[str, torch.Tensor] = {}
        self._scores: dict[str, torch.Tensor] = {}
        self._exchanged: dict[str, list[Reader]] = {}
        self._others: Taylor | None = None

    def begin(self, found: ChannelGroups, moments: Moments) -> tuple[str, ...]:
        """Returns the names of the weights of the layers at whose outputs gradients are to be taken."""
        readers = _readers(found, moments)
        self._others = Taylor(self.model, [group for group in self.groups if group.name not in readers])
        return tuple(dict.fromkeys(emission.weight for each in readers.values() for emission in each))

    def step(self) -> None:
        """Takes the gradients of a batch for the groups that no layer with moments reads."""
        if self._others is not None:
            self._others.step()

    def learn(self, found: ChannelGroups, moments: Moments, gradients: Mapping[str, torch.Tensor]) -> None:
        """Orders the channels of all groups.

        Args:
            found: the groups of the model.
            moments: moments of the layers' inputs (`sirfp.moments.take_moments`).
            gradients: covariances of the gradients at the layers' outputs (`sirfp.moments.gradients.take_gradients`).
                The identity is used for all layers if it is empty; otherwise layers that are not in it do not count.
        """
        inputs = _joined(_readers(found, moments), moments, gradients)
        last = {layers: group for group, each in inputs.items() for layers, _ in each}
        matrices: dict[Layers, tuple[torch.Tensor, torch.Tensor]] = {}
        for group in with_progress(inputs, "ordering channels by what the others can replace", len(inputs)):
            each = inputs[group]
            for layers, _ in each:
                if layers not in matrices:
                    matrices[layers] = self._matrices(layers, moments, gradients)
            size, span = found[group].size, found.spans[group]
            readers = [Reader(*_with_channels(*matrices[layers], atoms, span)) for layers, atoms in each]
            for layers, _ in each:
                if last[layers] == group:
                    del matrices[layers]
            if readers:
                order, errors = eliminate(readers, size)
                self._orders[group] = order
                if self.search == "local":
                    self._exchanged[group] = readers
                self._scores[group] = torch.empty_like(errors).index_copy_(0, order, errors.cummax(0).values)
        self._score_others(bool(gradients))

    def _matrices(
        self, layers: Layers, moments: Moments, gradients: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the inverse and the sum of the effects of layers that read the same input; see `Reader`."""
        first, *others = layers
        effect = _effect(self.model.get_parameter(first), gradients.get(first))
        for name in others:
            effect += _effect(self.model.get_parameter(name), gradients.get(name))
        return _inverse(moments[first], self.ridge), effect

    def _score_others(self, gradients: bool) -> None:
        rest = [group for group in self.groups if group.name not in self._scores]
        if not rest:
            return
        if gradients and self._others is not None and any(map(float, self._others.counts.values())):
            scores = {n: s / 2 for n, s in self._others.scores().items()}
        else:
            scores = Magnitude(self.model, rest).scores()
        for group in rest:
            score = scores.get(group.name)
            self._scores[group.name] = torch.zeros(group.size) if score is None else score
            self._orders[group.name] = self._scores[group.name].argsort(stable=True).cpu()

    def scores(self) -> dict[str, torch.Tensor]:
        if self.groups and not self._scores:
            raise InputError(f"criterion {self.name!r} has seen no images: give it moments of layers' inputs (`learn`)")
        return dict(self._scores)

    def orders(self) -> dict[str, torch.Tensor]:
        return dict(self._orders)

    def refine(self, group: Group, kept: torch.Tensor) -> torch.Tensor:
        readers = self._exchanged.get(group.name)
        return exchange(readers, kept) if readers else kept


def _readers(found: ChannelGroups, moments: Moments) -> dict[str, list[Emission]]:
    """Returns the layers with moments that read each group, each layer once; groups without any are left out."""
    first: dict[str, Emission] = {}
    for emission in found.emissions:
        if emission.weight in moments:
            first.setdefault(emission.weight, emission)
    names = np.array([group.name for group in found], dtype=object)
    owner = np.repeat(np.arange(len(names)), [group.size for group in found])
    readers: dict[str, list[Emission]] = {}
    for emission in first.values():
        atoms = emission.atoms[emission.atoms >= 0]
        for index in np.unique(owner[atoms]).tolist():
            readers.setdefault(names[index], []).append(emission)
    return readers


def _joined(
    readers: Mapping[str, Sequence[Emission]], moments: Moments, gradients: Mapping[str, torch.Tensor]
) -> dict[str, list[tuple[Layers, np.ndarray]]]:
    """Joins the layers that read the same input: one inverse and one elimination are enough for all of them.

    Args:
        readers: {group: the layers that read it}.
        moments, gradients: as in `Setwise.learn`; layers without gradients are left out if there are any.

    Returns:
        {group: (names of weights, atom of each of their input channels)}; the same names for every group.
    """
    emissions = {e.weight: e for each in readers.values() for e in each if not gradients or e.weight in gradients}
    layers: list[list[Emission]] = []
    for emission in emissions.values():
        for others in layers:
            same = np.array_equal(others[0].atoms, emission.atoms)
            if same and moments[others[0].weight].same_channels(moments[emission.weight]):
                others.append(emission)
                break
        else:
            layers.append([emission])
    joined = {e.weight: (tuple(x.weight for x in each), e.atoms) for each in layers for e in each}
    return {
        group: list({joined[e.weight][0]: joined[e.weight] for e in each if e.weight in joined}.values())
        for group, each in readers.items()
    }


def _inverse(moments: InputMoments, ridge: float) -> torch.Tensor:
    """Returns the inverse of a layer's input covariance plus ridge, (I, I) in float64."""
    _, covariance, _ = moments.statistics()
    variance = covariance.diagonal().clamp_min(0)
    floor = variance.mean().clamp_min(torch.finfo(torch.float32).tiny) * FLOOR
    covariance = covariance.clone()
    covariance.diagonal().add_(variance * ridge + floor)
    root, failed = torch.linalg.cholesky_ex(covariance)
    return torch.linalg.inv(covariance) if int(failed) else torch.cholesky_inverse(root)


def _effect(weight: torch.Tensor, gradients: torch.Tensor | None) -> torch.Tensor:
    """Returns `W' G W` of a layer, (I, I) in float64, the products of a kernel's taps added; G None: the identity."""
    taps = weight.detach().reshape(*weight.shape[:2], -1).movedim(2, 0).contiguous().double()  # (taps, O, I)
    seen = taps if gradients is None else gradients.to(taps) @ taps
    taps, seen = taps.flatten(0, 1), seen.flatten(0, 1)
    effect = taps.new_empty(taps.shape[1], taps.shape[1])
    for start in range(0, len(effect), COLUMNS):  # from the diagonal down: it is symmetric
        columns = slice(start, start + COLUMNS)
        effect[start:, columns] = taps[:, start:].T @ seen[:, columns]
    copy_below(effect, COLUMNS)
    return effect


def _with_channels(
    inverse: torch.Tensor, effect: torch.Tensor, atoms: np.ndarray, span: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns a reader's matrices and the input channels of each atom of a group.

    Where atoms have different numbers of channels, channels of no effect fill up the shorter lists.
    """
    size = span.stop - span.start
    inside = np.flatnonzero((atoms >= span.start) & (atoms < span.stop))
    own = atoms[inside] - span.start
    inside, own = inside[np.argsort(own, kind="stable")], np.sort(own)
    counts = np.bincount(own, minlength=size)
    slots = np.arange(len(own)) - np.repeat(np.cumsum(counts) - counts, counts)
    channels = np.full((size, int(counts.max())), -1)
    channels[own, slots] = inside
    missing = int((channels < 0).sum())
    if missing:
        width = len(inverse)
        channels[channels < 0] = np.arange(width, width + missing)
        inverse = torch.block_diag(inverse, torch.eye(missing).to(inverse))
        effect = torch.block_diag(effect, torch.zeros(missing, missing).to(effect))
    return inverse, effect, torch.as_tensor(channels, device=inverse.device)
