"""Runs calibration batches for a criterion outside a training run, and selects the default criterion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..moments.gradients import take_gradients
from ..moments.inputs import Moments
from ..network.batches import Run, attempted, with_copies
from ..network.divergence import Divergence
from ..network.forward import backward_seed, call, gradients, inference, is_detectron_input
from ..network.untouched import copied_inputs
from ..network.wrappers import on_plain_model
from ..processes import rank
from ..structure.groups import ChannelGroups
from .observer import Observer
from .registry import Criterion
from .setwise import Setwise

Loss = Callable[[nn.Module, Any], torch.Tensor]

logger = logging.getLogger(__name__)


def default_criterion() -> str:
    """Returns the default criterion of `sirfp.prune`, of the command `sirfp prune` and of training runs."""
    return "sirfp_setwise"


def is_annotated(batch: list[dict[str, Any]]) -> bool:
    """True if every item of Detectron2's `list[dict]` has annotations: instances or a semantic segmentation map."""
    return all({"instances", "sem_seg"} & set(item) for item in batch)


@on_plain_model
def calibrate(
    model: nn.Module,
    criterion: Criterion,
    batches: Iterable[Any] | None,
    loss: Loss | None = None,
    run: Run | None = None,
) -> None:
    """Runs batches through a model for a criterion: forward passes, and backward passes if it needs gradients.

    The model is not changed: norms use their running statistics and do not update them, and dropout is off. Afterwards
    every module has its previous mode, and no parameter has a gradient. If gradients are needed, models called with
    `list[dict]` (Detectron2's) run in training mode, in which they return their losses; `loss`, if given, replaces the
    sum of these losses. All other models run in evaluation mode.

    Args:
        model: the model.
        criterion: a criterion built for the model's groups.
        batches: the inputs of each call.
        loss: `loss(model, batch)` returns a tensor with one value.
        run: `run(model, batch)` calls the model, for criteria that need no gradients; `call`, or `loss` if it is given.

    Raises:
        InputError: there are no batches, the criterion needs gradients and there is no loss, or the model cannot be run
            on a batch (the cause is kept).
    """
    run = run or (with_copies(loss) if loss else call)
    if batches is None:
        raise InputError(f"criterion {criterion.name!r} needs {criterion.needs}: give calibration batches")
    observer, seen = Observer(model, criterion), 0
    with observer:
        for seen, batch in enumerate(batches, 1):  # noqa: B007
            if criterion.needs == "gradients":
                with gradients(model, is_detectron_input(batch), criterion.seed + seen):
                    model.zero_grad(set_to_none=True)
                    value = _loss(model, batch, criterion, loss, f"calibration batch {seen}")
                    value.backward(backward_seed(value))
                    observer.step()
            else:
                with inference(model):
                    attempted(run, model, batch, f"calibration batch {seen}")
                observer.step()
    if not seen:
        raise InputError(f"criterion {criterion.name!r} needs {criterion.needs}, but there are no calibration batches")


def _loss(model: nn.Module, batch: Any, criterion: Criterion, loss: Loss | None, what: str) -> torch.Tensor:
    """Returns the loss of a batch: the value of `loss`, or the sum of the losses that Detectron2's model returns."""
    if loss is not None:
        value = attempted(loss, model, copied_inputs(batch), what)  # also of tensors made in inference mode
    elif not is_detectron_input(batch):
        raise InputError(f"criterion {criterion.name!r} needs gradients: give loss=..., called with (model, batch)")
    elif not is_annotated(batch):
        raise InputError(
            f"criterion {criterion.name!r} needs gradients of the model's loss: calibration batches need "
            "annotations, 'instances' or 'sem_seg'"
        )
    else:
        value = sum(attempted(call, model, batch, what).values())
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"the loss must be a tensor of one value that has a gradient, got {kind}")
    return value


def learn(
    model: nn.Module,
    found: ChannelGroups,
    criterion: Setwise,
    moments: Moments,
    batches: Iterable[Any],
    divergence: Divergence,
    context: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
    """Gives a criterion that needs moments of layers' inputs what it needs, right before a cut.

    Gradients sample the Hessian of the divergence from the dense network; labels are not used. The model is not
    changed.

    Args:
        model: the model, whole or cut before.
        found: its groups.
        criterion: a criterion built for these groups.
        moments: moments of the layers' inputs.
        batches: the inputs of each call, for gradients.
        divergence: the measure whose Hessian is sampled.
        context: the context of every forward pass, e.g. autocast.
    """
    names = criterion.begin(found, moments)
    taken: dict[str, torch.Tensor] = {}
    if criterion.output_gradients and divergence.sampled:
        generator, finite = torch.Generator().manual_seed(criterion.seed + 7919 * rank()), []

        def score(model: nn.Module, batch: Any) -> tuple[torch.Tensor, int]:
            with context():
                outputs = divergence.outputs(model, batch)
            value = divergence.probe(outputs, generator)
            finite.append(bool(value.isfinite()))
            return value, divergence.images(outputs)

        with gradients(model, False, criterion.seed):
            taken = take_gradients(model, names, batches, score, criterion.step)
        if not any(finite):
            if not moments:
                raise InputError(f"criterion {criterion.name!r} has seen no batch with finite outputs")
            logger.warning(
                "no batch has finite outputs; the layers that read channels count alike, not by the output's gradients"
            )
            taken = {}
    criterion.learn(found, moments, taken)
