"""Batched non-maximum suppression as one operator, `sirfp::suppress`, exported as ONNX's NonMaxSuppression."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torchvision.ops import batched_nms


@torch.library.custom_op("sirfp::suppress", mutates_args=())
def suppress(boxes: torch.Tensor, scores: torch.Tensor, overlap: float, threshold: float, most: int) -> torch.Tensor:
    """Removes, per image and class, boxes that overlap a box of higher score.

    Args:
        boxes: (N, M, 4) corners.
        scores: (N, K, M), score of each class and box.
        overlap: largest allowed intersection over union; above it, the box of lower score is removed.
        threshold: score threshold; boxes with this score or less are removed.
        most: largest number of remaining boxes per image and class; the boxes of highest score remain.

    Returns:
        (R, 3) int64: indices of image, class and box of each remaining box.
    """
    kept = []
    for i in range(len(boxes)):
        classes, places = (scores[i] > threshold).nonzero(as_tuple=True)
        stay = batched_nms(boxes[i, places], scores[i, classes, places], classes, overlap)
        ranks = F.one_hot(classes[stay], scores.shape[1]).cumsum(0).gather(1, classes[stay, None])[:, 0]
        stay = stay[ranks <= most]
        kept.append(torch.stack([torch.full_like(stay, i), classes[stay], places[stay]], dim=1))
    return torch.cat(kept)


@suppress.register_fake
def _(boxes, scores, overlap, threshold, most):
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(), 3), dtype=torch.int64)


def scores_after_nms(
    boxes: torch.Tensor, class_scores: torch.Tensor, scores: torch.Tensor, overlap: float, threshold: float, most: int
) -> torch.Tensor:
    """Sets the scores of boxes that `suppress` removes to zero.

    Args:
        boxes: (N, M, 4) corners.
        class_scores: (N, K, M), for NMS within each class.
        scores: (N, M), the score of each box.
        overlap, threshold, most: see `suppress`.

    Returns:
        (N, M).
    """
    kept = suppress(boxes, class_scores, overlap, threshold, most)
    return scores * torch.zeros_like(scores).index_put((kept[:, 0], kept[:, 2]), scores.new_ones(()))


def translations() -> dict:
    """Maps the operator to its ONNX form, for `custom_translation_table` of `torch.onnx.export`."""
    from onnxscript import opset18

    op: Any = opset18  # typed Any: its annotations allow constants only, not the symbolic values of a translation

    def write(boxes, scores, overlap: float, threshold: float, most: int):
        count = op.Constant(value_ints=[most])
        limits = (op.Constant(value_floats=[value]) for value in (overlap, threshold))
        return op.NonMaxSuppression(boxes, scores, count, *limits)

    return {torch.ops.sirfp.suppress.default: write}
