"""What exported detectors share: detections of a fixed number, candidates of a feature map, the last selection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .graphs import Graph, Tensors, as_dicts


class DetectorGraph(Graph):
    """A detector: images to `boxes` (N, D, 4), `scores` (N, D), `classes` (N, D) and `count` (N).

    Detections stand by falling score; D is the most that the model gives for an image, and what is beyond an image's
    count is zeros with class -1. Boxes are corners x0, y0, x1, y1 in pixels of the image. Scores below the model's own
    threshold, NMS and the limits are as in Detectron2's inference.

    Attributes:
        threshold: scores above it are detections.
        overlap: intersection over union from which on NMS suppresses.
        limit: D.
        call: the model as its users call it.
    """

    outputs: tuple[str, ...] = ("boxes", "scores", "classes", "count")
    between: tuple[str, ...] = ("unclipped_boxes", "all_scores", "all_classes")
    threshold: float
    overlap: float
    limit: int
    call: Any

    def finish(self, images: torch.Tensor, *between: torch.Tensor) -> Tensors:
        """Clips boxes to the images and drops those without area, as Detectron2 does last."""
        boxes, scores, classes, *others = between
        boxes = clipped(boxes, images)
        scores, order = (scores * filled(boxes)).topk(self.limit)
        real = scores > self.threshold
        boxes = rows_at(boxes, order) * real.unsqueeze(2)
        found = boxes, scores * real, torch.where(real, classes.gather(1, order), -1), real.sum(1)
        return *found, *(self._in_order(other, order, real) for other in others)

    def original(self, images: torch.Tensor) -> Tensors:
        """Detections as Detectron2 returns them, filled up to D."""
        found = [item["instances"] for item in self.call(as_dicts(images))]
        return self._filled_up(found, [("pred_boxes", 0), ("scores", 0), ("pred_classes", -1)])

    def _in_order(self, values: torch.Tensor, order: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """(N, D, h, w) of detections in a new order (N, D), zeros where there is none."""
        index = order[:, :, None, None].expand(-1, -1, *values.shape[2:])
        return values.gather(1, index) * real[:, :, None, None]

    def _filled_up(self, found: Sequence[Any], fields: Sequence[tuple[str, int]]) -> Tensors:
        """Fields of each image's `Instances`, with D rows, and their count."""
        columns = []
        for name, value in fields:
            rows = [one.get(name) for one in found]
            rows = [getattr(row, "tensor", row) for row in rows]
            fill = ((0, 0) * (row.dim() - 1) + (0, self.limit - len(row)) for row in rows)
            columns.append(torch.stack([F.pad(row, pad, value=value) for row, pad in zip(rows, fill, strict=True)]))
        return *columns, torch.tensor([len(one) for one in found])


def candidates(
    generator: nn.Module, level: int, scores: torch.Tensor, deltas: torch.Tensor, transform: Any, count: int
) -> Tensors:
    """The best candidates of a feature map.

    Args:
        generator: Detectron2's `DefaultAnchorGenerator`.
        level: the map's number in it.
        scores: (N, A * K, H, W), of each anchor and class, none below 0.
        deltas: (N, A * 4, H, W), from anchors to boxes.
        transform: Detectron2's, from deltas to boxes.
        count: how many to take, T.

    Returns:
        Boxes (N, T, 4), scores (N, T), 0 where there are no more, and classes (N, T).
    """
    anchors = level_anchors(generator, level, *scores.shape[2:])
    num_classes = scores.shape[1] // (deltas.shape[1] // 4)
    found, places = best(flat(scores, num_classes).flatten(1), count)
    rows = places // num_classes
    deltas = rows_at(flat(deltas, 4), rows)
    boxes = transform.apply_deltas(deltas.flatten(0, 1), anchors[rows.flatten()])
    return boxes.reshape(deltas.shape), found, places % num_classes


def level_anchors(generator: nn.Module, level: int, height: int, width: int) -> torch.Tensor:
    """A feature map's anchors (H * W * A, 4) as Detectron2's generator makes them."""
    cells, stride = list(generator.cell_anchors)[level], generator.strides[level]
    y, x = ((torch.arange(n, device=cells.device) + generator.offset) * stride for n in (height, width))
    y, x = y.reshape(-1, 1).expand(-1, width), x.expand(height, -1)
    return (torch.stack([x, y, x, y], dim=2).unsqueeze(2) + cells).reshape(-1, 4)


def best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of scores (N, M) and their places, (N, count) both; zeros where there are no more."""
    found, places = F.pad(scores, (0, count)).topk(count)
    return found, places.clamp(max=scores.shape[1] - 1)


def rows_at(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Returns the rows, (N, M, 4), at places (N, T), as (N, T, 4)."""
    return rows.gather(1, places.unsqueeze(2).expand(-1, -1, 4))


def flat(maps: torch.Tensor, size: int) -> torch.Tensor:
    """(N, A * size, H, W) to (N, H * W * A, size), in the order of the anchors."""
    n, channels, height, width = maps.shape
    count = channels // size  # written out, since the exporter takes minutes to find what -1 stands for
    return maps.reshape(n, count, size, height, width).permute(0, 3, 4, 1, 2).reshape(n, height * width * count, size)


def clipped(boxes: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) within images (N, C, H, W)."""
    x, y = boxes[..., 0::2].clamp(0, images.shape[3]), boxes[..., 1::2].clamp(0, images.shape[2])
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=-1)


def filled(boxes: torch.Tensor, least: float = 0.0) -> torch.Tensor:
    """Whether both sides of boxes (..., 4) are longer than a length, (...)."""
    return (boxes[..., 2] - boxes[..., 0] > least) & (boxes[..., 3] - boxes[..., 1] > least)
