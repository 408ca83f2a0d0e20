"""Verifies a pruned model: it must compute the same as the dense model with the removed channels set to zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..network.forward import call, inference, tensors
from ..network.outputs import Outputs, only
from ..network.plain_tensors import register_plain
from ..network.untouched import seeded
from ..network.walk import walk, walk_modules, walk_tensors
from ..network.wrappers import COMPILED, on_plain_model, plain
from ..structure.plan import PruningPlan
from ..surgery.cut import give_bias
from .choices import Choices
from .kept import as_if_cut

EQUAL = 1e-4
"""Relative difference up to which outputs count as equal up to rounding."""


@dataclass(frozen=True)
class Difference:
    """How far two outputs differ.

    Attributes:
        relative: the largest relative difference of all output tensors. The relative difference of a tensor is its
            largest absolute difference divided by the largest absolute value of the first output.
        where: path of the output tensor with the largest difference.
        problem: the reason why the outputs cannot be compared, e.g. different shapes; "" if they can be compared.
        each: {path of an output tensor: its relative difference}, NaN where one of the values is NaN.
    """

    relative: float
    where: str
    problem: str = ""
    each: Mapping[str, float] = field(default_factory=dict)


@on_plain_model
def mask(model: nn.Module, plan: PruningPlan) -> None:
    """Zeroes, in place, the removed channels of a dense model: weights, biases, scales, shifts and running means.

    Running variances are kept, since zero is not a valid variance.
    """
    register_plain(model, {name for cut in plan.cuts for name, _ in cut.tensors})
    state = walk_tensors(model)
    with torch.no_grad():
        for cut in plan.cuts:
            gone = torch.ones(cut.size, dtype=torch.bool)
            gone[list(cut.keep)] = False
            index = gone.nonzero().flatten()
            for name, dim in cut.tensors:
                if name in state and not name.endswith("running_var") and writable(state[name]):
                    state[name].index_fill_(dim, index.to(state[name].device), 0)
    _lengthen(model)


@torch.no_grad()
def _lengthen(model: nn.Module) -> None:
    """Sets zero directions of weight norm to ones: a weight g v / |v| of length g = 0 is zero only if |v| is not."""
    for module in walk_modules(model):
        for direction, length, dim in _weight_norms(module):
            rows = direction.movedim(dim, 0)
            empty = (length.movedim(dim, 0).flatten(1) == 0).all(1) & (rows.flatten(1) == 0).all(1)
            rows[empty] = 1.0


def _weight_norms(module: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yields direction, length and dimension of each weight norm of a module, of both kinds that PyTorch has."""
    for hook in module._forward_pre_hooks.values():
        if type(hook).__name__ == "WeightNorm" and hook.dim not in (None, -1):
            yield getattr(module, f"{hook.name}_v"), getattr(module, f"{hook.name}_g"), hook.dim
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        first: Any = module[0]
        if type(first).__name__ == "_WeightNorm" and first.dim not in (None, -1):
            yield module.get_parameter("original1"), module.get_parameter("original0"), first.dim


def writable(tensor: torch.Tensor) -> bool:
    """Returns True if each element has its own memory, False for an expanded tensor, whose elements share memory."""
    return all(step or size == 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


@on_plain_model
def expand(model: nn.Module, plan: PruningPlan, pruned: Mapping[str, torch.Tensor]) -> None:
    """Fills a dense model, in place, with the pruned weights at the kept indices and zeros elsewhere.

    Args:
        model: the dense model.
        plan: the plan, which holds the kept indices.
        pruned: the pruned model's parameters and buffers by name; names may say that a part was compiled.
    """
    pruned = {name.replace(COMPILED, ""): tensor for name, tensor in pruned.items()}
    register_plain(model, {name for cut in plan.cuts for name, _ in cut.tensors})
    modules = dict(walk(model))
    for name in plan.new_biases:
        if modules[name].bias is None:
            give_bias(modules[name])
    kept: dict[str, list] = {}
    for cut in plan.cuts:
        for name, dim in cut.tensors:
            kept.setdefault(name, []).append((dim, cut.keep))
    with torch.no_grad():
        for name, tensor in walk_tensors(model).items():  # yields a shared tensor only once
            if name not in pruned or not writable(tensor):
                continue  # a buffer that is not in the state dict, or an expanded tensor, which is constant
            if name not in kept:
                tensor.copy_(pruned[name])
                continue
            index = [torch.arange(n) for n in tensor.shape]
            for dim, keep in kept[name]:
                index[dim] = torch.tensor(keep)
            tensor.fill_(1.0 if name.endswith("running_var") else 0.0)
            tensor[torch.meshgrid(*index, indexing="ij")] = pruned[name].to(tensor)
    _lengthen(model)


def compare(
    a: nn.Module,
    b: nn.Module,
    inputs: Any,
    plan: PruningPlan | None = None,
    outputs: Outputs | None = None,
    *,
    masked: bool = False,
) -> Difference:
    """Runs two models on the same inputs and random numbers, in evaluation mode, and compares every output tensor.

    Args:
        a: a model, e.g. the masked dense one.
        b: the other model, e.g. the pruned one. It repeats the discrete choices of `a` (`sirfp.verify.choices`).
        inputs: their inputs.
        plan: the plan if `a` is a masked model: it then takes statistics over the kept channels only
            (`sirfp.verify.kept`), as the pruned model does. If this comparison finds a difference, a second one is made
            in which the statistics of `a` run over all channels, and the smaller difference is returned. Equality in
            the second one is the stricter proof. So is a third in which the code takes widths of the kept channels
            (`sirfp.verify.kept_widths`).
        outputs: takes the part out of the output that is compared, as in `sirfp.prune`; None for all of it.
        masked: True if `b` is a masked model of the same plan too.
    """
    with plain(a) as first, plain(b) as second:
        plans = plan, plan if masked else None
        difference = _compared(first, second, inputs, plans, outputs)
        if plan is not None and not difference.relative <= EQUAL:
            stricter = _compared(first, second, inputs, (None, None), outputs)
            fitted = _compared(first, second, inputs, plans, outputs, replace_widths=True)
            return min(difference, stricter, fitted, key=lambda found: found.relative)
    return difference


def _compared(
    a: nn.Module,
    b: nn.Module,
    inputs: Any,
    plans: tuple[PruningPlan | None, PruningPlan | None],
    outputs: Outputs | None,
    *,
    replace_widths: bool = False,
) -> Difference:
    """Compares once, see `compare`; a model with a plan takes statistics over the kept channels.

    With `replace_widths` it also multiplies them with powers of the number of kept channels, see
    `sirfp.verify.kept_widths`.
    """
    found, choices = [], Choices()
    for model, kept in zip((a, b), plans, strict=True):
        ways = as_if_cut(model, kept, replace_widths=replace_widths)
        with only(model, outputs), inference(model), seeded(model, 0), choices, ways:
            found.append(dict(tensors(call(model, inputs))))
        choices = Choices(choices)
    first, second = found
    if set(first) != set(second):
        odd = min(set(first) ^ set(second))
        return Difference(float("inf"), odd, f"only one of the two models returns {odd}")
    for path, tensor in first.items():
        if tensor.shape != second[path].shape:
            return Difference(float("inf"), path, f"{path}: shapes {tuple(tensor.shape)}, {tuple(second[path].shape)}")
    return furthest(first, second)


def furthest(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> Difference:
    """Returns the largest relative difference between tensors of the same name and shape in `first` and `second`.

    NaN, which is no number of any size, counts as the largest.
    """
    each: dict[str, float] = {}
    for path, tensor in first.items():
        if not tensor.numel():
            continue
        x, y = tensor.double(), second[path].double()
        each[path] = float((x - y).abs().max() / x.abs().max().clamp_min(1e-12))
    where = max(each, key=lambda path: (math.isnan(each[path]), each[path]), default="")
    if not each or each[where] == 0:
        return Difference(0.0, "", each=each)
    return Difference(each[where], where, each=each)
