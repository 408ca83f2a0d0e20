"""Prunes a model in one shot: the whole method of docs/method.md on one page.

1. Find the groups of channels that can only be removed together.
2. Score each channel by a criterion. SIRFP's score is the redundancy of a channel when the greedy clique removes it.
3. Decide: remove the channels with the lowest scores of each partition until the budget is met.
4. Compensate for the constant output of the removed channels, and cut the model.

A training run does the same in several steps, with statistics of its own batches (`sirfp.session`).

Only `prune` is defined here. The functions that it consists of can also be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from .budget.decision import decide, refined
from .budget.evidence import Evidence
from .budget.limits import Limits, check_count
from .budget.target import KEEP_FLOPS, Target
from .criteria.calibration import Loss, calibrate
from .criteria.registry import refuse_misspelt
from .network.batches import Run
from .network.clock import Clock
from .network.outputs import Outputs, only, with_everything
from .network.untouched import leave_inference, outside_inference_mode
from .network.wrappers import as_models, on_plain_model, unwrapped
from .session import PruningSession
from .structure.plan import PruningPlan
from .surgery.plan_and_cut import cut, cut_to, plan_for
from .surgery.reconstruction import BATCHES
from .surgery.stale_optimizers import check_optimizer

__all__ = ["calibrate", "cut", "cut_to", "decide", "plan_for", "prune", "refined"]


@outside_inference_mode()
@on_plain_model
def prune(
    model: nn.Module,
    example_inputs: Any,
    criterion: str | None = None,
    keep_flops: float | None = None,
    calibration: Iterable[Any] | None = None,
    *,
    keep_params: float | None = None,
    keep_latency: float | None = None,
    clock: Clock | None = None,
    loss: Loss | None = None,
    forward: Run | None = None,
    bias_correction: bool = True,
    reconstruction: int = BATCHES,
    widths: str | None = None,
    steps: int | None = None,
    divergence: Callable[[Any, Any], torch.Tensor] | None = None,
    outputs: Outputs | None = None,
    ignore: Iterable[str] = Limits.ignore,
    keep: Mapping[str, float] | None = None,
    round_to: int = Limits.round_to,
    seed: int = 0,
    min_keep: float = Limits.min_keep,
    partitions: Iterable[str] = Limits.partitions,
    optimizer: torch.optim.Optimizer | None = None,
    also: Iterable[nn.Module] = (),
    trial_device: str | torch.device | None = None,
    **options: Any,
) -> PruningPlan:
    """Prunes a model in place, in one shot.

    A model that was pruned before is pruned further. All budgets are shares of the dense model, and the plan that is
    returned leads from the dense model to the present one.

    Args:
        model: a module called with tensors, a timm model, or a Detectron2 model called with `list[dict]`. It may be
            wrapped (`sirfp.network.wrappers`): distributed, compiled, averaged, or in a `LightningModule`.
        example_inputs: inputs of the model (`sirfp.network.forward.call`), on which FLOPs are counted.
        criterion: a name in the registry: "sirfp_setwise" (the default), "sirfp" (the paper's), "magnitude", ...
        keep_flops: the share of the dense model's FLOPs that the plan may keep, in (0, 1]; 0.4 if no budget is given,
            and 1 if `keep` gives widths instead.
        calibration: batches, for criteria that need features or gradients and for the reconstruction: inputs like
            `example_inputs`, alone or with labels, as a list, tuple or mapping. Of batches without a length, such as an
            endless loader, the first `sirfp.network.batches.ENDLESS` are used.
        keep_params: the share of the dense model's parameters, in place of `keep_flops`.
        keep_latency: the share of the dense model's latency, in place of `keep_flops`. Latency is the time of a call
            with the example inputs on this machine, in evaluation mode (`sirfp.budget.latency`).
        clock: the runtime in which `keep_latency` is measured: PyTorch by default, or
            `sirfp.exporting.OnnxRuntimeClock(threads=...)`.
        loss: `loss(model, batch)`, for criteria that need gradients; Detectron2 models compute their own losses.
            Without `forward`, it also runs the batches for features.
        forward: `forward(model, batch)`, which calls the model with a batch, where batches are not like the example
            inputs.
        bias_correction: True to add the constant output of removed channels to the layers that read them
            (docs/method.md, section 3).
        reconstruction: the number of calibration batches on which the layers that read removed channels are refitted
            to read only the remaining ones (`sirfp.surgery.reconstruction`). 0: no refit, as in the paper.
        widths: how the number of channels that each group keeps is decided. "curves": by the divergence from the dense
            network, measured on calibration images that are held back (`sirfp.budget.curves`). "ranking": by one
            ranking of all scores, as in the paper. The default is the criterion's own way (`Criterion.widths`).
        steps: the number of cuts in which the budget is reached. Orders, moments and curves are made anew for each cut.
            By default so many that each cut keeps at least `sirfp.budget.several_cuts.GENTLE` of the budget's quantity
            if widths come from curves, else 1.
        divergence: compares the raw outputs of the dense network and of another one, for curves: a function that
            returns a tensor with one value. By default KL for class scores (`sirfp.network.divergence`).
        outputs: takes the part out of the model's output that counts, e.g. `lambda out: out.logits`: channels of other
            outputs may be removed, and only this part is compared. `loss` still gets a model that returns everything.
            By default all outputs count.
        ignore: names or patterns of modules that stay whole: all channels that they make and all that they read are
            kept. To keep only those that they make, use `keep={"name": 1.0}`.
        keep: {name or pattern of layers: a share (float) or a number (int) of their channels}, for example
            `{"layer3.*": 0.5, "layer4.0.conv1": 96}`. The budget then decides the widths of all other layers; without a
            budget they stay as they are. Layers that are tied take the value of one entry: the full name of a layer
            before patterns, later patterns before earlier ones (`sirfp.budget.given_widths`).
        round_to: widths after pruning are multiples of this number (`sirfp.budget.limits.Limits`).
        seed: the seed of random numbers.
        min_keep: the smallest share of its channels in the dense model that a group keeps.
        partitions: prefixes of module names. Groups are ranked within their partition: a group belongs to the first
            prefix that its name starts with, and the remaining groups form one more partition. "*" makes every group a
            partition, so that all lose the same share.
        optimizer: the model's optimizer, whose state is cut together with the parameters; or None. An optimizer made
            before the cut and not given here trains nothing; a warning says so at its next step.
        also: models of the same structure that lose the same channels, such as a moving average of the weights or a
            teacher; wrapped or not.
        trial_device: where a copy of the model runs to find its groups and to try cuts, e.g. "cpu" for a model on a
            GPU, whose libraries plan each new shape anew. By default where the model is.
        **options: arguments of the criterion.

    Returns:
        The plan of all cuts so far: the kept channels of the dense model, and FLOPs and parameters before and after.

    Raises:
        InputError: a value is out of range, several budgets are given, the criterion or an option is unknown, the
            budget is too small to be met, nothing can be cut (the message names the most frequent reasons), or the
            model cannot be run on the inputs (the cause is kept).
    """
    target = Target.of(
        1.0 if keep else KEEP_FLOPS, clock, keep_flops=keep_flops, keep_params=keep_params, keep_latency=keep_latency
    )
    limits = Limits(partitions, min_keep, round_to, ignore, keep or ())
    check_count("reconstruction", reconstruction, 0)
    if steps is not None:
        check_count("steps", steps, 1)
    leave_inference(model)
    loss = with_everything(loss)
    also = as_models(also)
    with ExitStack() as stack:
        for one in (model, *also):
            stack.enter_context(only(unwrapped(one), outputs))
        check_optimizer(model, optimizer)
        session = PruningSession(
            model, example_inputs, optimizer,
            criterion=criterion, options=options, limits=limits, bias_correction=bias_correction, seed=seed,
            trial_device=trial_device,
        )  # fmt: skip
        refuse_misspelt(session.criterion, options, prune, "prune")
        session.go_on()
        session.follow(also)
        evidence = Evidence.of_calibration(
            model, example_inputs, session.criterion, calibration, widths, reconstruction or BATCHES,
            loss=loss, forward=forward, divergence=divergence,
        )  # fmt: skip
        return session.prune(target, evidence, refit=reconstruction > 0, steps=steps)
