"""The divergence of Detectron2's segmentors: that of the head's logits before they are resized to the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .divergence_terms import SOFTMAX, Divergence, Term, comparable, exact, noted, until
from .forward import evaluation


class SegmentorDivergence(Divergence):
    """The divergence of a `SemanticSegmentor`: KL over the classes, its mean over the pixels of an image, and images.

    Compared are the outputs of the head's classifier, without the rows and columns that pad an image. Images of
    different sizes are compared one by one.
    """

    curve_images = 16

    def outputs(self, model: nn.Module, batch: Any) -> list[torch.Tensor]:
        """Returns the logits (N, K, h, w), or one tensor (1, K, h, w) for each image if the sizes differ."""
        with evaluation(model):
            return semantic_logits(model, batch)

    def images(self, outputs: Sequence[torch.Tensor]) -> int:
        """Returns the number of images of a batch."""
        return sum(len(one) for one in outputs)

    def terms(self, dense: Sequence[torch.Tensor]) -> list[Term]:
        """Returns one term for each tensor."""
        return semantic_terms(dense, 0)


def semantic_terms(dense: Sequence[torch.Tensor], first: int) -> list[Term]:
    """Returns the terms of class logits, from a position in the list of outputs on: the mean over pixels and images."""
    count = sum(len(z) for z in dense[first:])
    return [
        Term(i, SOFTMAX, exact(z).new_tensor(1 / (count * z[0, 0].numel()))) for i, z in enumerate(dense) if i >= first
    ]


def semantic_logits(model: Any, batch: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Runs a network with a `sem_seg_head` until its logits are known.

    Returns:
        The logits without padding: (N, K, h, w), or one tensor (1, K, h, w) for each image if the sizes differ.

    Raises:
        InputError: the network returns no logits.
    """
    found: list[torch.Tensor] = []
    padded: list[torch.Size] = []
    with noted(model.backbone, lambda inputs, _: padded.append(inputs[0].shape[-2:])):
        output = until(model, batch, classifier(model), lambda x: found.append(x[0] if isinstance(x, tuple) else x))
    if not found:  # a head that does not call its classifier as a module
        return [comparable(one["sem_seg"].unsqueeze(0))[0] for one in output]
    return without_padding(found[0], padded[0], batch)


def classifier(model: Any) -> nn.Module:
    """Returns the module of a `sem_seg_head` that makes the logits: its `predictor`, or the whole head."""
    return getattr(model.sem_seg_head, "predictor", model.sem_seg_head)


def without_padding(logits: torch.Tensor, padded: Sequence[int], batch: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Removes the rows and columns of logits that belong to the padding of images.

    Args:
        logits: (N, K, h, w).
        padded: height and width of the padded images.
        batch: the inputs, N images.

    Returns:
        The logits: one tensor, or one for each image if the sizes differ.

    Raises:
        InputError: the logits are not a map.
    """
    if logits.dim() != 4:
        raise InputError(f"the segmentation head returns no map of logits but {tuple(logits.shape)}; give divergence=")
    height, width = padded
    sizes = [item["image"].shape[-2:] for item in batch]
    rows = [(ceil(h * logits.shape[2] / height), ceil(w * logits.shape[3] / width)) for h, w in sizes]
    if len(set(rows)) == 1:
        return [logits[:, :, : rows[0][0], : rows[0][1]]]
    return [one[None, :, :h, :w] for one, (h, w) in zip(logits, rows, strict=True)]
