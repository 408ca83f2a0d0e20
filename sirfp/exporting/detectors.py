"""Detectron2's single-stage detectors (RetinaNet, FCOS) as functions of one tensor, with their decoding and NMS."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .graphs import Graph, Tensors, as_dicts, padding
from .suppression import suppress


class DenseDetectorGraph(Graph):
    """A single-stage detector: images to `boxes` (N, D, 4), `scores` (N, D), `classes` (N, D) and `count` (N).

    Detections stand by falling score; D is the most that the model gives for an image, and what is beyond an image's
    count is zeros with class -1. Boxes are corners x0, y0, x1, y1 in pixels of the image. Scores below the model's own
    threshold, NMS and the limits are as in Detectron2's inference.

    Args:
        model: a RetinaNet or an FCOS.
    """

    outputs = ("boxes", "scores", "classes", "count")
    between = ("unclipped_boxes", "all_scores", "all_classes")

    def __init__(self, model: nn.Module):
        super().__init__(model.pixel_mean, model.pixel_std, *padding(model.backbone))
        self.backbone, self.head, self.anchors = model.backbone, model.head, model.anchor_generator
        self.in_features, self.num_classes = list(model.head_in_features), model.num_classes
        self.coarsest = max(self.multiple, *map(int, self.anchors.strides))
        self.transform = model.box2box_transform
        self.threshold, self.overlap = model.test_score_thresh, model.test_nms_thresh
        self.candidates = model.test_topk_candidates
        self.limit, self.call = model.max_detections_per_image, model.forward

    def network(self, x: torch.Tensor) -> Tensors:
        """The best detections of padded images: boxes (N, D, 4), scores (N, D), 0 where there are fewer, classes."""
        features = self.backbone(x)
        maps = zip(*self.head([features[name] for name in self.in_features]), strict=True)
        found = [self._level(number, *level) for number, level in enumerate(maps)]
        boxes, scores, classes = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        spread = F.one_hot(classes, self.num_classes).transpose(1, 2) * scores.unsqueeze(1)
        chosen = suppress(boxes, spread, self.overlap, self.threshold, self.limit)
        stay = torch.zeros_like(scores).index_put((chosen[:, 0], chosen[:, 2]), scores.new_ones(()))
        scores, places = best(scores * stay, self.limit)
        return boxes.gather(1, places.unsqueeze(2).expand(-1, -1, 4)), scores, classes.gather(1, places)

    def finish(self, images: torch.Tensor, *between: torch.Tensor) -> Tensors:
        """Clips boxes to the images and drops those without area, as Detectron2 does last."""
        boxes, scores, classes = between
        x, y = boxes[..., 0::2].clamp(0, images.shape[3]), boxes[..., 1::2].clamp(0, images.shape[2])
        boxes = torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], dim=2)
        filled = (x[..., 1] > x[..., 0]) & (y[..., 1] > y[..., 0])
        scores, order = (scores * filled).topk(self.limit)
        real = scores > self.threshold
        boxes = boxes.gather(1, order.unsqueeze(2).expand(-1, -1, 4)) * real.unsqueeze(2)
        return boxes, scores * real, torch.where(real, classes.gather(1, order), -1), real.sum(1)

    def original(self, images: torch.Tensor) -> Tensors:
        """Detections as Detectron2 returns them, filled up to D."""
        found = [item["instances"] for item in self.call(as_dicts(images))]
        rows = [(one.pred_boxes.tensor, one.scores, one.pred_classes) for one in found]
        fill = [self.limit - len(one) for one in found]
        boxes = torch.stack([F.pad(row[0], (0, 0, 0, n)) for row, n in zip(rows, fill, strict=True)])
        scores = torch.stack([F.pad(row[1], (0, n)) for row, n in zip(rows, fill, strict=True)])
        classes = torch.stack([F.pad(row[2], (0, n), value=-1) for row, n in zip(rows, fill, strict=True)])
        return boxes, scores, classes, torch.tensor([len(one) for one in found])

    def _level(self, number, logits, deltas, centerness=None) -> Tensors:
        """The best candidates of one feature level: boxes (N, T, 4), scores and classes (N, T)."""
        scores = _flat(logits, self.num_classes).sigmoid()
        if centerness is not None:
            scores = (scores * _flat(centerness, 1).sigmoid()).sqrt()
        scores, places = best(scores.flatten(1), self.candidates)
        rows = places // self.num_classes
        anchors = self._anchors(number, *logits.shape[2:])[rows.flatten()]
        deltas = _flat(deltas, 4).gather(1, rows.unsqueeze(2).expand(-1, -1, 4))
        boxes = self.transform.apply_deltas(deltas.flatten(0, 1), anchors)
        return boxes.reshape(deltas.shape), scores, places % self.num_classes

    def _anchors(self, number: int, height: int, width: int) -> torch.Tensor:
        """A level's anchors (H * W * A, 4) as Detectron2's generator makes them."""
        cells, stride = list(self.anchors.cell_anchors)[number], self.anchors.strides[number]
        y, x = ((torch.arange(n, device=cells.device) + self.anchors.offset) * stride for n in (height, width))
        y, x = y.reshape(-1, 1).expand(-1, width), x.expand(height, -1)
        return (torch.stack([x, y, x, y], dim=2).unsqueeze(2) + cells).reshape(-1, 4)


def best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of scores (N, M) and their places, (N, count) both; zeros where there are no more."""
    found, places = F.pad(scores, (0, count)).topk(count)
    return found, places.clamp(max=scores.shape[1] - 1)


def _flat(maps: torch.Tensor, size: int) -> torch.Tensor:
    """(N, A * size, H, W) to (N, H * W * A, size), in the order of the anchors."""
    n, channels, height, width = maps.shape
    count = channels // size  # written out, since the exporter takes minutes to find what -1 stands for
    return maps.reshape(n, count, size, height, width).permute(0, 3, 4, 1, 2).reshape(n, height * width * count, size)
