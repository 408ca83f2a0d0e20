"""What a criterion is shown outside a training run, and which criterion is the default."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..network.forward import backward_seed, call, gradients, inference, is_detectron_input
from .observer import Observer
from .registry import Criterion

Loss = Callable[[nn.Module, Any], torch.Tensor]


def default_criterion(has_gradients: bool = True) -> str:
    """The criterion that is used where none is named: `sirfp_joint`, or `sirfp` where there are no gradients.

    This one rule serves `sirfp.prune`, the command `sirfp prune` and training runs (`SIRFP.CRITERION`). `sirfp_joint`
    needs gradients of a loss, which a training run has; `sirfp` is the part of it that needs images alone.

    Args:
        has_gradients: whether there is a loss (`gives_gradients`).
    """
    return "sirfp_joint" if has_gradients else "sirfp"


def gives_gradients(batch: Any, loss: Loss | None = None) -> bool:
    """Whether there is a loss: one is given, or the batch is Detectron2's and annotated, so that the model has one."""
    return loss is not None or (is_detectron_input(batch) and is_annotated(batch))


def is_annotated(batch: list[dict[str, Any]]) -> bool:
    """Whether every item of Detectron2's `list[dict]` has annotations: instances, or a map of classes."""
    return all({"instances", "sem_seg"} & set(item) for item in batch)


def calibrate(model: nn.Module, criterion: Criterion, batches: Iterable[Any] | None, loss: Loss | None = None) -> None:
    """Shows a criterion batches: forward passes, or forward and backward where it needs gradients.

    The model stays as it is: norms use their running statistics and do not update them, dropout is off; afterwards
    every module has its mode again and no parameter has a gradient. Models called with `list[dict]` (Detectron2's) are
    in training mode for gradients, in which they return their losses; `loss` may replace their sum. All others are in
    evaluation mode.

    Args:
        model: the model.
        criterion: built for the model's groups.
        batches: what the model is called with.
        loss: `loss(model, batch)`, a tensor with one value.

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
                    value.backward(backward_seed(value))
                    observer.step()
            else:
                with inference(model):
                    call(model, batch)
                observer.step()
    if not seen:
        raise InputError(f"criterion {criterion.name!r} looks at {criterion.needs}, but calibration held no batch")


def _loss(model: nn.Module, batch: Any, criterion: Criterion, loss: Loss | None) -> torch.Tensor:
    """The loss of a batch: what `loss` returns, or the sum of the losses that Detectron2's model returns."""
    if loss is not None:
        value = loss(model, batch)
    elif not is_detectron_input(batch):
        raise InputError(f"criterion {criterion.name!r} looks at gradients: give loss=..., called with (model, batch)")
    elif not is_annotated(batch):
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
