"""Pruning a model: groups, scores, budget, plan, surgery, in one page.

This is docs/method.md in code: channels that must go together are found, each is scored by a criterion (SIRFP: its
redundancy at the moment the greedy clique removes it), the lowest of each partition go until the budget is met,
what they still emitted is compensated, and the model is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from .budget.target import Choice, Target, check_share, choose
from .channels.find import find_groups
from .criteria import Criterion, build_criterion
from .criteria.observer import Observer
from .errors import InputError
from .network.forward import call, gradients, inference, is_detectron_input
from .structure.groups import ChannelGroups
from .structure.plan import Cut, PruningPlan
from .surgery.compensation import compensate
from .surgery.cut import apply, cuts_for
from .surgery.reconstruction import Moments, take_moments
from .training.nonfinite import FiniteSteps


def prune(
    model: nn.Module,
    example_inputs: Any,
    criterion: str = "sirfp",
    keep_flops: float | None = None,
    calibration: Iterable[Any] | None = None,
    *,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
    bias_correction: bool = True,
    reconstruction: int = 16,
    ignore: Iterable[str] = (),
    round_to: int = 1,
    seed: int = 0,
    min_keep: float = 0.02,
    partitions: Iterable[str] = ("backbone.bottom_up", "backbone"),
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> PruningPlan:
    """Prunes a model in place, in one shot.

    Args:
        model: a module called with tensors, a timm model, or a Detectron2 model called with `list[dict]`.
        example_inputs: what it is called with (`sirfp.network.forward.call`); FLOPs are counted on it.
        criterion: a name in the registry: "sirfp", "magnitude", "random", ...
        keep_flops: the share of the FLOPs that the plan may keep, in (0, 1]; 0.4 where no budget is given.
        calibration: such inputs, for criteria that look at features or gradients.
        keep_params: in place of it, the share of the parameters.
        keep_latency: in place of it, the share of the time that a call with the example inputs takes on this machine,
            in evaluation mode (`sirfp.budget.latency`).
        loss: `loss(model, batch)`, for criteria that need gradients; Detectron2 models bring their own.
        bias_correction: add what removed channels still emitted where it was read (docs/method.md, section 3).
        reconstruction: how many of the calibration batches the layers that read removed channels are fitted on, to
            read from those that stay what they lost (`sirfp.surgery.reconstruction`); 0 for none, as in the paper.
        ignore: names or patterns of modules whose channels all stay.
        round_to: widths are multiples of this.
        seed: of what is random.
        min_keep: the share of its channels that every group keeps at least.
        partitions: prefixes of names; the first that any group has is ranked apart from the rest; "*" ranks every
            group apart, so that all lose the same share.
        optimizer: its state is cut along.
        **options: the criterion's own.

    Returns:
        The plan: what was kept, the FLOPs and parameters before and after.

    Raises:
        InputError: for values out of range, several budgets, an unknown criterion or option, or a budget out of reach.
    """
    target = Target.of(0.4, keep_flops=keep_flops, keep_params=keep_params, keep_latency=keep_latency)
    check_share("min_keep", min_keep, zero=True)
    if not isinstance(round_to, int) or round_to < 1:
        raise InputError(f"round_to must be a whole number of at least 1, got {round_to!r}")
    found = find_groups(model, example_inputs, ignore)
    scorer = build_criterion(criterion, model, found.groups, seed=seed, **options)
    first: list[Any] = []
    if scorer.needs != "weights":
        calibrate(model, scorer, _noting(calibration, reconstruction, first), loss)
    elif calibration is not None:
        first += islice(calibration, reconstruction)
    choice = choose(
        model, example_inputs, found, scorer.scores(), target,
        partitions=partitions, min_keep=min_keep, round_to=round_to, cost_exponent=scorer.cost_exponent,
    )  # fmt: skip
    choice = replace(choice, keep=refined(found, choice.keep, scorer))
    with inference(model):
        moments = take_moments(model, found, first, loss or call) if first else None
    return cut_to(
        model, found, choice, criterion, bias_correction=bias_correction, optimizer=optimizer, moments=moments
    )


def _noting(batches: Iterable[Any] | None, count: int, first: list[Any]) -> Iterator[Any] | None:
    """Passes batches on and keeps the first of them in a list."""
    if batches is None:
        return None

    def passed() -> Iterator[Any]:
        for batch in batches:
            if len(first) < count:
                first.append(batch)
            yield batch

    return passed()


def calibrate(
    model: nn.Module,
    criterion: Criterion,
    batches: Iterable[Any] | None,
    loss: Callable[[nn.Module, Any], torch.Tensor] | None = None,
) -> None:
    """Shows a criterion batches: forward passes, or forward and backward where it needs gradients.

    The model stays as it is: norms use their statistics and keep them, dropout is off, afterwards every module has
    its mode again and no parameter a gradient. Models called with `list[dict]` (Detectron2's) are in training mode,
    in which they return their losses; `loss` may replace their sum. All others are in evaluation mode.

    Raises:
        InputError: there are no batches, or the criterion needs gradients and there is no loss.
    """
    if batches is None:
        raise InputError(f"criterion {criterion.name!r} looks at {criterion.needs}: give it batches as calibration")
    observer, seen = Observer(model, criterion), 0
    with observer:
        for seen, batch in enumerate(batches, 1):  # noqa: B007
            if criterion.needs == "gradients":
                with gradients(model, is_detectron_input(batch), criterion.seed + seen):
                    model.zero_grad(set_to_none=True)
                    value = _loss(model, batch, criterion, loss)
                    value.backward(FiniteSteps.seed(value))
                    observer.step()
            else:
                with inference(model):
                    call(model, batch)
                observer.step()
    if not seen:
        raise InputError(f"criterion {criterion.name!r} looks at {criterion.needs}, but calibration held no batch")


def _loss(model: nn.Module, batch: Any, criterion: Criterion, loss: Callable | None) -> torch.Tensor:
    if loss is not None:
        value = loss(model, batch)
    elif not is_detectron_input(batch):
        raise InputError(f"criterion {criterion.name!r} looks at gradients: give loss=..., called with (model, batch)")
    elif not all({"instances", "sem_seg"} & set(item) for item in batch):
        raise InputError(
            f"criterion {criterion.name!r} looks at gradients of the model's loss: calibration batches need "
            "annotations, 'instances' or 'sem_seg'"
        )
    else:
        value = sum(call(model, batch).values())
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"the loss must be a tensor of one value that has a gradient, got {kind}")
    return value


def refined(found: ChannelGroups, keep: np.ndarray, criterion: Criterion) -> np.ndarray:
    """A choice of atoms, each group's as `Criterion.refine` would have it; widths stay."""
    keep = keep.copy()
    for group in found:
        inside = keep[found.spans[group.name]]
        if not inside.all():
            better = criterion.refine(group, torch.from_numpy(np.flatnonzero(inside)))
            inside[:] = False
            inside[better.cpu().numpy()] = True
    return keep


def cut(
    model: nn.Module,
    found: ChannelGroups,
    keep: np.ndarray,
    criterion: str = "",
    *,
    bias_correction: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
    moments: Moments | None = None,
) -> PruningPlan:
    """Cuts a model, in place, to chosen atoms.

    Args:
        model: the model in which the groups were found.
        found: the groups.
        keep: which atoms stay, (atoms,) of bool.
        criterion: the name that the plan remembers.
        bias_correction: whether to compensate for what removed channels emitted.
        optimizer: its state is cut along.
        moments: of what layers read, for the reconstruction of what they lose.

    Returns:
        The plan.
    """
    biases = compensate(model, found, keep, optimizer, moments) if bias_correction or moments else ()
    plan = plan_for(found, keep, criterion, biases)
    apply(model, plan, optimizer)
    return plan


def cut_to(model: nn.Module, found: ChannelGroups, choice: Choice, criterion: str = "", **options: Any) -> PruningPlan:
    """Cuts a model, as `cut` does, by a choice, whose budget the plan remembers."""
    budget = (choice.target.quantity, choice.target.share)
    return replace(cut(model, found, choice.keep, criterion, **options), budget=budget, latency=choice.latency)


def plan_for(found: ChannelGroups, keep: np.ndarray, criterion: str = "", biases: tuple[str, ...] = ()) -> PruningPlan:
    """The plan that a choice of atoms makes; `biases` names modules that were given a bias."""
    cuts = cuts_for(found, keep)
    extra = [
        Cut(((f"{name}.bias", 0),), c.size, c.keep)
        for name in biases
        for c in cuts
        if (f"{name}.weight", 0) in c.tensors
    ]
    padded = np.append(keep, True)
    return PruningPlan(
        kept={g.name: tuple(np.array(g.channels)[keep[found.spans[g.name]]].tolist()) for g in found},
        channels={g.name: g.size for g in found},
        places={g.name: g.place for g in found},
        flops=(found.flops(), found.flops(keep)),
        params=(found.params(), found.params(keep)),
        cuts=cuts + tuple(extra),
        new_biases=biases,
        widths={m: {f: int(padded[a].sum()) for f, a in v.items()} for m, v in found.widths.items()},
        criterion=criterion,
        frozen={f.name: f.reason for f in found.frozen},
        branches=found.branches,
    )
