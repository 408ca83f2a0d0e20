"""A budget of latency: a table of layers' times over their widths, solved, then the whole network measured.

The table is of the machine, the inputs and the precision at hand: copies of the network, cut to several shares of their
channels, are timed layer by layer. It predicts any plan, so that a budget is searched as one of FLOPs is. What it
cannot know (caches, widths that suit the machine) is corrected: the plan's network is timed in turns with the whole
one, and the table asked for as much less or more as it was off, until both agree.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import nn

from ..errors import InputError
from ..network.forward import call, inference
from ..network.latency import Latency, measure, synchronizer
from ..structure.groups import ChannelGroups
from ..structure.plan import PruningPlan
from ..surgery.cut import apply, cuts_for
from .allocation import allocate, out_of_reach, smallest, widths_at

logger = logging.getLogger(__name__)

WIDTHS = (1.0, 0.75, 0.5, 0.25)  # shares of the channels that the table is measured at, beside the least
TABLE_REPEATS = 5
CLOSE = 0.02  # how far from the budget a measured network may be, relative to it, for the search to end
PROMISED = 0.05
NEAR = 0.1  # how far apart two tries may be, relatively, to tell the same of how far the table is off
TRIES = 8
SECONDS = 2.0  # that one comparison of two networks may take, if it has its least number of rounds
ROUNDS = (9, 101)


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of each layer, and of all between them, by the share of it that stays.

    Attributes:
        members: (sides, atoms) how many indices of each side of a layer's weight belong to each atom.
        sizes: (sides,) of the dense weights.
        layers: (layers, 2) the sides of each layer's weight; the last side stands for none.
        shares: (layers + 1, points) of each layer's weight that stays, ascending; the last of all sides together.
        seconds: (layers + 1, points), never falling.
    """

    members: csr_matrix
    sizes: np.ndarray
    layers: np.ndarray
    shares: np.ndarray
    seconds: np.ndarray

    @staticmethod
    def measure(
        model: nn.Module, example_inputs: Any, found: ChannelGroups, min_keep: float = 0.02, round_to: int = 1
    ) -> LatencyTable:
        """Times copies of a model at several widths, layer by layer."""
        modules = _layers(model)
        places = [(f"{name}.weight", dim) for name, sides in modules.items() for dim in range(sides)]
        row = {place: i for i, place in enumerate(places)}
        rows, columns, values = [], [], []
        for group in found:
            atoms = np.arange(found.atoms)[found.spans[group.name]]
            for piece in group.slices:
                if (piece.tensor, piece.dim) in row:
                    rows.append(np.full(len(atoms), row[piece.tensor, piece.dim]))
                    columns.append(atoms)
                    values.append(np.full(len(atoms), piece.index.shape[1]))
        index = (np.concatenate(rows), np.concatenate(columns)) if rows else (np.zeros(0, int), np.zeros(0, int))
        members = csr_matrix(
            (np.concatenate(values) if values else np.zeros(0), index), shape=(len(places) + 1, max(1, found.atoms))
        )
        parameters = dict(model.named_parameters()) | dict(model.named_buffers())
        sizes = np.array([parameters[name].shape[dim] for name, dim in places] + [1.0])
        layers = np.array([[row.get((f"{name}.weight", dim), len(places)) for dim in (0, 1)] for name in modules])
        empty = LatencyTable(members, sizes, layers.reshape(-1, 2), np.zeros((0, 0)), np.zeros((0, 0)))
        points = [*(widths_at(found, share, min_keep, round_to) for share in WIDTHS[1:])]
        points = [np.ones(found.atoms, dtype=bool), *points, smallest(found, min_keep, round_to)]
        shares = np.stack([empty.share(keep) for keep in points], 1)[:, ::-1]
        seconds = np.stack([_profile(cut_copy(model, found, k), example_inputs, modules) for k in points], 1)[:, ::-1]
        return LatencyTable(members, sizes, empty.layers, shares, np.maximum.accumulate(seconds, axis=1))

    def share(self, keep: np.ndarray) -> np.ndarray:
        """What stays of each layer, and of all sides together, for atoms kept, (layers + 1,)."""
        left = self.sizes - self.members @ (~keep).astype(float)
        each = (left / self.sizes)[self.layers].prod(axis=1)
        return np.append(each, left.sum() / self.sizes.sum())

    def __call__(self, keep: np.ndarray) -> float:
        """Seconds of the network for atoms kept, (atoms,) of bool: linear between the table's points."""
        at = self.share(keep)
        points = self.shares.shape[1]
        right = np.clip((self.shares < at[:, None]).sum(axis=1), 1, points - 1)
        line = np.arange(len(at))
        x0, x1 = self.shares[line, right - 1], self.shares[line, right]
        y0, y1 = self.seconds[line, right - 1], self.seconds[line, right]
        way = np.divide(at - x0, x1 - x0, out=np.ones_like(at), where=x1 > x0)
        return float((y0 + np.clip(way, 0, 1) * (y1 - y0)).sum())


def meet(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    scores: Mapping[str, torch.Tensor],
    share: float,
    before: PruningPlan | None = None,
    *,
    partitions: Iterable[str] = (),
    min_keep: float = 0.02,
    round_to: int = 1,
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Chooses the atoms with which a call takes a share of the dense model's time, on this machine.

    Args:
        share: of the dense model's latency, in (0, 1].
        before: the plan that made the model from the dense one.
        model, example_inputs, found, scores, partitions, min_keep, round_to: as in `sirfp.budget.target.choose`.

    Returns:
        The atoms kept, (atoms,) of bool, and the seconds of the model (as it came, cut to them), measured in turns.

    Raises:
        InputError: the smallest plan takes longer, or the dense model's latency is not known.
    """
    wanted = within_reach(model, example_inputs, found, share, before, min_keep, round_to)
    whole, least = np.ones(found.atoms, dtype=bool), smallest(found, min_keep, round_to)
    if wanted >= 1:
        return whole, _compared(model, model, example_inputs)
    table = LatencyTable.measure(model, example_inputs, found, min_keep, round_to)
    dense, bottom = table(whole), table(least) / table(whole) * 1.0001
    asked, factors = wanted, []
    best: tuple[float, np.ndarray, tuple[float, float]] | None = None
    for _ in range(TRIES):
        asked = min(1.0, max(bottom, asked))
        keep = allocate(
            found, scores, asked * dense, table,
            partitions=partitions, min_keep=min_keep, round_to=round_to, what="latency",
        )  # fmt: skip
        smaller = cut_copy(model, found, keep)
        pair = _compared(model, smaller, example_inputs)
        if abs(_ratio(pair) / wanted - 1) <= CLOSE:  # once more, as the first may have been lucky
            pair = tuple((a + b) / 2 for a, b in zip(pair, _compared(model, smaller, example_inputs), strict=True))
        off = _ratio(pair) / wanted - 1
        logger.info("Latency: %.3f asked of the table, %.3f measured, %.3f wanted", asked, _ratio(pair), wanted)
        if best is None or abs(off) < best[0]:
            best = abs(off), keep, pair
        if abs(off) <= CLOSE:
            break
        factors.append((asked, _ratio(pair) / asked))
        asked = wanted / _correction(factors)
    if best[0] > PROMISED:
        logger.warning(
            "The latency is %.3f of the dense network's where %.3f was asked for: no choice of widths came closer",
            _ratio(best[2]) * share / wanted, share,
        )  # fmt: skip
    return best[1], best[2]


def within_reach(
    model: nn.Module,
    example_inputs: Any,
    found: ChannelGroups,
    share: float,
    before: PruningPlan | None = None,
    min_keep: float = 0.02,
    round_to: int = 1,
) -> float:
    """The share of its own latency that a budget leaves the model, once the smallest plan was seen to take no longer.

    Args and Raises:
        As in `meet`.
    """
    earlier = 1.0
    if before is not None:
        if before.latency is None:
            raise InputError(
                "a latency is a share of the dense network's, but this one was pruned to another budget before and its "
                "plan says no latency: ask for a share of FLOPs or parameters, or begin with the dense network"
            )
        earlier = before.latency[1] / before.latency[0]
    wanted = share / earlier
    if wanted >= 1:
        return wanted
    if not found.groups:
        raise InputError("nothing in the model can be cut: every channel is frozen")
    floor = _ratio(_compared(model, cut_copy(model, found, smallest(found, min_keep, round_to)), example_inputs))
    if floor > wanted * (1 + PROMISED):
        raise out_of_reach(share, floor * earlier, 1.0, "latency", min_keep, round_to)
    return wanted


def _correction(factors: list[tuple[float, float]]) -> float:
    """How much longer a plan takes than the table says: the middle of what was measured near the last try."""
    last = factors[-1][0]
    return statistics.median(factor for asked, factor in factors if abs(asked / last - 1) < NEAR)


def cut_copy(model: nn.Module, found: ChannelGroups, keep: np.ndarray) -> nn.Module:
    """A copy cut to chosen atoms, without compensation: fast as the pruned model, not as good."""
    copied = copy.deepcopy(model)
    apply(copied, PruningPlan({}, {}, {}, (0, 0), (0, 0), cuts=cuts_for(found, keep)))
    return copied


def _compared(first: nn.Module, second: nn.Module, inputs: Any) -> tuple[float, float]:
    """Seconds of a call of each, in turns: the quartile of the fast ones, which other work disturbs least."""
    guess = measure({"": (first, inputs)}, warmup=1, repeats=1)[""].median
    rounds = int(min(ROUNDS[1], max(ROUNDS[0], SECONDS / 2 / guess)))
    times: dict[str, Latency] = measure({"first": (first, inputs), "second": (second, inputs)}, repeats=rounds)
    return times["first"].low, times["second"].low


def _ratio(pair: tuple[float, float]) -> float:
    return pair[1] / pair[0]


def _layers(model: nn.Module) -> dict[str, int]:
    """Names of the modules with a weight, each once and none within another: how many sides of it channels index."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight", module._buffers.get("weight"))
        inside = any(name.startswith(f"{other}.") for other in found)
        if isinstance(weight, torch.Tensor) and weight.dim() and not inside:
            found[name] = min(2, weight.dim())
    return found


def _profile(model: nn.Module, inputs: Any, layers: Mapping[str, int]) -> np.ndarray:
    """Median seconds of each layer and, last, of all between them, (layers + 1,)."""
    wait, spent, began = synchronizer(model), dict.fromkeys(layers, 0.0), {}

    def start(name):
        def before(*_):
            wait()
            began[name] = time.perf_counter()

        return before

    def stop(name):
        def after(*_):
            wait()
            spent[name] += time.perf_counter() - began[name]

        return after

    handles = []
    for name in layers:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(start(name)), module.register_forward_hook(stop(name))]
    rows = []
    with inference(model):
        for _ in range(TABLE_REPEATS + 1):
            spent.update(dict.fromkeys(layers, 0.0))
            wait()
            first = time.perf_counter()
            call(model, inputs)
            wait()
            total = time.perf_counter() - first
            rows.append([*spent.values(), total - sum(spent.values())])
    for handle in handles:
        handle.remove()
    return np.array([statistics.median(column) for column in zip(*rows[1:], strict=True)])
