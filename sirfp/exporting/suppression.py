"""Non-maximum suppression for batches as one operator, `sirfp::suppress`, which is ONNX's NonMaxSuppression."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torchvision.ops import batched_nms


@torch.library.custom_op("sirfp::suppress", mutates_args=())
def suppress(boxes: torch.Tensor, scores: torch.Tensor, overlap: float, threshold: float, most: int) -> torch.Tensor:
    """Suppresses, in each image and class, boxes that overlap one with a higher score.

    Args:
        boxes: (N, M, 4) corners.
        scores: (N, K, M), of every box for every class.
        overlap: intersection over union above which the lower box goes.
        threshold: only scores above it count.
        most: boxes that stay in an image and class, those of the highest scores.

    Returns:
        (R, 3) whole numbers: image, class and box of each that stays.
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


def surviving(
    boxes: torch.Tensor, spread: torch.Tensor, scores: torch.Tensor, overlap: float, threshold: float, most: int
) -> torch.Tensor:
    """Scores (N, M) of boxes, zero where `suppress` drops them; `spread` has them by class, (N, K, M)."""
    chosen = suppress(boxes, spread, overlap, threshold, most)
    return scores * torch.zeros_like(scores).index_put((chosen[:, 0], chosen[:, 2]), scores.new_ones(()))


def translations() -> dict:
    """How the exporter writes the operator: for `custom_translation_table` of `torch.onnx.export`."""
    from onnxscript import opset18 as op

    def write(boxes, scores, overlap: float, threshold: float, most: int):
        count = op.Constant(value_ints=[most])
        limits = (op.Constant(value_floats=[value]) for value in (overlap, threshold))
        return op.NonMaxSuppression(boxes, scores, count, *limits)

    return {torch.ops.sirfp.suppress.default: write}
