"""Pruning a model: groups, scores, decision, cut, on one page.

This is docs/method.md in code. Channels that must go together are found, each is scored by a criterion (SIRFP: its
redundancy at the moment the greedy clique removes it), the lowest of each partition go until the budget is met, what
they still emitted is compensated, and the model is cut. A training run takes the same steps, several times and with
statistics of its own batches (`sirfp.session`).

`prune` is the one function that is defined here; those that it is made of are also importable from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import nn

from .budget.decision import decide, refined
from .budget.limits import Limits
from .budget.target import KEEP_FLOPS, Target
from .channels.find import find_groups
from .criteria import build_criterion
from .criteria.calibration import Loss, calibrate, default_criterion, gives_gradients
from .network.forward import call, inference
from .structure.plan import PruningPlan
from .surgery.plan_and_cut import cut, cut_to, plan_for
from .surgery.reconstruction import BATCHES, take_moments

__all__ = ["calibrate", "cut", "cut_to", "decide", "plan_for", "prune", "refined"]


def prune(
    model: nn.Module,
    example_inputs: Any,
    criterion: str | None = None,
    keep_flops: float | None = None,
    calibration: Iterable[Any] | None = None,
    *,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    loss: Loss | None = None,
    bias_correction: bool = True,
    reconstruction: int = BATCHES,
    ignore: Iterable[str] = Limits.ignore,
    round_to: int = Limits.round_to,
    seed: int = 0,
    min_keep: float = Limits.min_keep,
    partitions: Iterable[str] = Limits.partitions,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> PruningPlan:
    """Prunes a model in place, in one shot.

    Args:
        model: a module called with tensors, a timm model, or a Detectron2 model called with `list[dict]`.
        example_inputs: what it is called with (`sirfp.network.forward.call`); FLOPs are counted on it.
        criterion: a name in the registry: "sirfp", "magnitude", "random", ... By default "sirfp_joint" where there are
            gradients, that is with a `loss` or with annotated batches of Detectron2, and "sirfp" where there are none.
        keep_flops: the share of the FLOPs that the plan may keep, in (0, 1]; 0.4 where no budget is given.
        calibration: batches, for criteria that look at features or gradients and for the reconstruction.
        keep_params: instead of it, the share of the parameters.
        keep_latency: instead of it, the share of the time that a call with the example inputs takes on this machine,
            in evaluation mode (`sirfp.budget.latency`).
        loss: `loss(model, batch)`, for criteria that need gradients; Detectron2 models bring their own.
        bias_correction: add what removed channels still emitted where it was read (docs/method.md, section 3).
        reconstruction: the number of calibration batches on which the layers that read removed channels are fitted to
            read instead from those that stay (`sirfp.surgery.reconstruction`); 0: none are fitted, as in the paper.
        ignore: names or patterns of modules whose channels all stay.
        round_to: widths are multiples of this.
        seed: of what is random.
        min_keep: the share of its channels that every group keeps at least.
        partitions: prefixes of names; the groups of the first that matches any are ranked apart from the rest; "*"
            ranks every group apart, so that all lose the same share.
        optimizer: its state is cut along.
        **options: the criterion's own.

    Returns:
        The plan: what was kept, the FLOPs and parameters before and after.

    Raises:
        InputError: for values out of range, several budgets, an unknown criterion or option, or a budget out of reach.
    """
    target = Target.of(KEEP_FLOPS, keep_flops=keep_flops, keep_params=keep_params, keep_latency=keep_latency)
    limits = Limits(partitions, min_keep, round_to, ignore)
    found = find_groups(model, example_inputs, limits.ignore)
    batches = None if calibration is None else iter(calibration)
    first = list(islice(batches or (), max(1, reconstruction)))
    if criterion is None:
        criterion = default_criterion(gives_gradients(first[0] if first else None, loss))
    scorer = build_criterion(criterion, model, found.groups, seed=seed, **options)
    if scorer.needs != "weights":
        calibrate(model, scorer, None if batches is None else chain(first, batches), loss)
    choice = decide(model, example_inputs, found, scorer, target, limits)
    with inference(model):
        seen = first[:reconstruction]
        moments = take_moments(model, found, seen, loss or call) if seen else None
    return cut_to(
        model, found, choice, criterion, bias_correction=bias_correction, optimizer=optimizer, moments=moments
    )
