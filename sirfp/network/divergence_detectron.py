"""The divergence of Detectron2's segmentors: that of the head's logits before they are resized to the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .divergence_terms import SOFTMAX, Divergence, Term, comparable, exact, until
from .forward import evaluation


def detectron_divergence(model: nn.Module) -> Divergence | None:
    """Returns the divergence of a model of Detectron2, None for other models."""
    if isinstance(getattr(model, "sem_seg_head", None), nn.Module) and not hasattr(model, "proposal_generator"):
        return SegmentorDivergence()
    return None


class SegmentorDivergence(Divergence):
    """The divergence of a `SemanticSegmentor`: KL over the classes, its mean over the pixels of an image, and images.

    Compared are the outputs of the head's classifier, without the rows and columns that pad an image. Images of
    different sizes are compared one by one.
    """

    def outputs(self, model: nn.Module, batch: Any) -> list[torch.Tensor]:
        """Returns the logits (N, K, h, w), or one tensor (1, K, h, w) for each image if the sizes differ."""
        with evaluation(model):
            return semantic_logits(model, batch)

    def images(self, outputs: Sequence[torch.Tensor]) -> int:
        """Returns the number of images of a batch."""
        return sum(len(one) for one in outputs)

    def terms(self, dense: Sequence[torch.Tensor]) -> list[Term]:
        """Returns one term for each tensor."""
        count = self.images(dense)
        return [Term(i, SOFTMAX, exact(z).new_tensor(1 / (count * z[0, 0].numel()))) for i, z in enumerate(dense)]


def semantic_logits(model: Any, batch: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Runs a network with a `sem_seg_head` until its logits are known.

    Returns:
        The logits without padding: (N, K, h, w), or one tensor (1, K, h, w) for each image if the sizes differ.

    Raises:
        InputError: the network returns no logits.
    """
    found: list[torch.Tensor] = []
    padded: list[torch.Size] = []
    head = model.sem_seg_head
    handle = model.backbone.register_forward_pre_hook(lambda _, inputs: padded.append(inputs[0].shape[-2:]))
    try:
        last = getattr(head, "predictor", head)
        output = until(model, batch, last, lambda x: found.append(x[0] if isinstance(x, tuple) else x))
    finally:
        handle.remove()
    if not found:  # a head that does not call its classifier as a module
        return [comparable(one["sem_seg"].unsqueeze(0))[0] for one in output]
    logits, (height, width) = found[0], padded[0]
    if logits.dim() != 4:
        raise InputError(f"the segmentation head returns no map of logits but {tuple(logits.shape)}; give divergence=")
    sizes = [item["image"].shape[-2:] for item in batch]
    rows = [(ceil(h * logits.shape[2] / height), ceil(w * logits.shape[3] / width)) for h, w in sizes]
    if len(set(rows)) == 1:
        return [logits[:, :, : rows[0][0], : rows[0][1]]]
    return [one[None, :, :h, :w] for one, (h, w) in zip(logits, rows, strict=True)]
