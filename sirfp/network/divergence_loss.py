"""The increase of the training loss, for networks whose outputs cannot be compared: labels take the outputs' place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .divergence import divergence_for
from .divergence_terms import Divergence, exact
from .forward import call, inference, training_branches
from .held_out import count_images
from .untouched import seed_pytorch


class LossIncrease(Divergence):
    """How much larger the sum of a network's losses is than the dense network's, on annotated batches of Detectron2.

    A loss below the dense network's counts as no increase.
    """

    def outputs(self, model: nn.Module, batch: Any) -> list[Any]:
        """Runs a network in training mode, with norms and dropout in evaluation mode.

        Returns:
            Its losses, and the number of images.

        Raises:
            InputError: it does not return a dictionary of losses.
        """
        recorded = torch.is_grad_enabled()
        with training_branches(model), torch.set_grad_enabled(recorded), torch.random.fork_rng():
            seed_pytorch(0)  # a detector draws anchors and proposals: the same ones for all networks
            losses = call(model, batch)
        if not isinstance(losses, Mapping) or not losses:
            raise InputError(
                f"in training the network returns {type(losses).__name__}, not a dictionary of losses, so that no loss "
                "curve can be measured; decide widths by ranking"
            )
        return [torch.stack([exact(x).reshape(()) for x in losses.values()]).sum(), count_images(batch)]

    def images(self, outputs: Sequence[Any]) -> int:
        """Returns the number of images of a batch."""
        return outputs[1]

    def _value(self, dense: Sequence[Any], other: Sequence[Any]) -> torch.Tensor:
        return (other[0] - dense[0]).clamp_min(0)

    def probe(self, outputs: Sequence[Any], generator: torch.Generator) -> torch.Tensor:
        """Returns the loss, summed over images; its gradients are those of the labels."""
        return outputs[0] * outputs[1]


def divergence_on(model: nn.Module, batch: Any) -> Divergence:
    """Returns the divergence that fits a network in a training run.

    Args:
        model: the network.
        batch: an annotated training batch, on which it is tried.

    Returns:
        That of `divergence_for`, or the increase of the loss if the network's outputs cannot be compared.
    """
    found = divergence_for(model)
    try:
        with inference(model):
            found.outputs(model, batch)
    except InputError:
        return LossIncrease()
    return found
