"""Common parts of exported detectors: outputs of a fixed size, candidates of each feature map, final selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .graphs import Graph, Tensors, detectron_inputs


class DetectorGraph(Graph):
    """A detector: maps images to `boxes` (N, D, 4), `scores` (N, D), `classes` (N, D) and `count` (N).

    Detections are sorted by descending score. D is the model's limit of detections per image. `count` is the number of
    detections of each image; the rows after it are padding: zeros, class -1. Boxes are corners x0, y0, x1, y1 in
    pixels of the image. Score threshold, NMS and limits are those of Detectron2's inference.

    Attributes:
        threshold: score threshold; detections have larger scores.
        overlap: NMS threshold: a box is removed if its intersection over union with a box of higher score is larger.
        limit: D, the largest number of detections per image.
        call: the model's `forward`; maps Detectron2's list of dicts to its outputs.
    """

    outputs: tuple[str, ...] = ("boxes", "scores", "classes", "count")
    intermediate: tuple[str, ...] = ("unclipped_boxes", "all_scores", "all_classes")
    threshold: float
    overlap: float
    limit: int
    call: Any

    def finish(self, images: torch.Tensor, *intermediate: torch.Tensor) -> Tensors:
        """Clips boxes to the images and drops empty boxes, the last steps of Detectron2's inference."""
        boxes, scores, classes, *others = intermediate
        boxes = clip_boxes(boxes, images)
        scores, order = (scores * sides_longer(boxes)).topk(self.limit)
        real = scores > self.threshold
        boxes = rows_at(boxes, order) * real.unsqueeze(2)
        detections = boxes, scores * real, torch.where(real, classes.gather(1, order), -1), real.sum(1)
        return *detections, *(self._reorder(other, order, real) for other in others)

    def original(self, images: torch.Tensor) -> Tensors:
        """Detections of Detectron2's inference, padded to D rows."""
        found = [item["instances"] for item in self.call(detectron_inputs(images))]
        return self._pad_to_limit(found, [("pred_boxes", 0), ("scores", 0), ("pred_classes", -1)])

    def _reorder(self, values: torch.Tensor, order: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Reorders values (N, D, h, w) of detections by indices (N, D); zeros where `real` (N, D) is False."""
        index = order[:, :, None, None].expand(-1, -1, *values.shape[2:])
        return values.gather(1, index) * real[:, :, None, None]

    def _pad_to_limit(self, found: Sequence[Any], fields: Sequence[tuple[str, int]]) -> Tensors:
        """Stacks fields of each image's `Instances`, padded to D rows, and the number of instances (N).

        Args:
            found: `Instances` of each image.
            fields: (name, value to pad with).
        """
        columns = []
        for name, value in fields:
            rows = [one.get(name) for one in found]
            rows = [getattr(row, "tensor", row) for row in rows]
            fill = ((0, 0) * (row.dim() - 1) + (0, self.limit - len(row)) for row in rows)
            columns.append(torch.stack([F.pad(row, pad, value=value) for row, pad in zip(rows, fill, strict=True)]))
        return *columns, torch.tensor([len(one) for one in found])


def candidates(
    generator: Any, level: int, scores: torch.Tensor, deltas: torch.Tensor, transform: Any, count: int
) -> Tensors:
    """Selects the candidates of highest score on a feature map.

    Args:
        generator: Detectron2's `DefaultAnchorGenerator`.
        level: index of the feature map in the generator's list of levels.
        scores: (N, A * K, H, W), non-negative scores for A anchors and K classes.
        deltas: (N, A * 4, H, W), box regression relative to the anchors.
        transform: Detectron2's `Box2BoxTransform`, which applies deltas to anchors.
        count: T, number of candidates.

    Returns:
        Boxes (N, T, 4), scores (N, T), classes (N, T). If the map has fewer than T candidates, the remaining scores
        are 0.
    """
    anchors = level_anchors(generator, level, *scores.shape[2:])
    num_classes = scores.shape[1] // (deltas.shape[1] // 4)
    highest, indices = top_scores(per_anchor(scores, num_classes).flatten(1), count)
    rows = indices // num_classes
    deltas = rows_at(per_anchor(deltas, 4), rows)
    boxes = transform.apply_deltas(deltas.flatten(0, 1), anchors[rows.flatten()])
    return boxes.reshape(deltas.shape), highest, indices % num_classes


def level_anchors(generator: Any, level: int, height: int, width: int) -> torch.Tensor:
    """Anchors (H * W * A, 4) of a feature map, equal to the anchors of Detectron2's `DefaultAnchorGenerator`."""
    cells, stride = list(generator.cell_anchors)[level], generator.strides[level]
    y, x = ((torch.arange(n, device=cells.device) + generator.offset) * stride for n in (height, width))
    y, x = y.reshape(-1, 1).expand(-1, width), x.expand(height, -1)
    return (torch.stack([x, y, x, y], dim=2).unsqueeze(2) + cells).reshape(-1, 4)


def top_scores(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of scores (N, M) and their indices, both (N, count); if M < count, the rest have score 0."""
    highest, indices = F.pad(scores, (0, count)).topk(count)
    return highest, indices.clamp(max=scores.shape[1] - 1)


def rows_at(rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gathers rows of (N, M, 4) by indices (N, T); returns (N, T, 4)."""
    return rows.gather(1, indices.unsqueeze(2).expand(-1, -1, 4))


def per_anchor(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Reshapes (N, A * size, H, W) to (N, H * W * A, size), in the order of `level_anchors`."""
    n, channels, height, width = maps.shape
    count = channels // size  # not -1: with symbolic sizes the exporter takes minutes to infer it
    return maps.reshape(n, count, size, height, width).permute(0, 3, 4, 1, 2).reshape(n, height * width * count, size)


def clip_boxes(boxes: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Clips boxes (..., 4) to the height and width of images (N, C, H, W)."""
    x, y = boxes[..., 0::2].clamp(0, images.shape[3]), boxes[..., 1::2].clamp(0, images.shape[2])
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def sides_longer(boxes: torch.Tensor, length: float = 0.0) -> torch.Tensor:
    """Mask (...) that is True for boxes (..., 4) with both sides longer than `length` pixels."""
    return (boxes[..., 2] - boxes[..., 0] > length) & (boxes[..., 3] - boxes[..., 1] > length)
