"""Detectron2's single-stage detectors (RetinaNet, FCOS) as functions of one tensor, with their decoding and NMS."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .detectors import DetectorGraph, best, candidates, rows_at
from .graphs import Tensors, sides
from .suppression import surviving


class DenseDetectorGraph(DetectorGraph):
    """A single-stage detector.

    Args:
        model: a RetinaNet or an FCOS.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model.pixel_mean, model.pixel_std, *sides(model.backbone))
        self.backbone, self.head, self.anchors = model.backbone, model.head, model.anchor_generator
        self.in_features, self.num_classes = list(model.head_in_features), model.num_classes
        self.transform = model.box2box_transform
        self.threshold, self.overlap = model.test_score_thresh, model.test_nms_thresh
        self.candidates = model.test_topk_candidates
        self.limit, self.call = model.max_detections_per_image, model.forward

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """The best detections of padded images: boxes (N, D, 4), scores (N, D), 0 where there are fewer, classes."""
        features = self.backbone(x)
        maps = zip(*self.head([features[name] for name in self.in_features]), strict=True)
        found = [self._level(level, *each) for level, each in enumerate(maps)]
        boxes, scores, classes = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        spread = F.one_hot(classes, self.num_classes).transpose(1, 2) * scores.unsqueeze(1)
        scores = surviving(boxes, spread, scores, self.overlap, self.threshold, self.limit)
        scores, places = best(scores, self.limit)
        return rows_at(boxes, places), scores, classes.gather(1, places)

    def _level(self, level, logits, deltas, centerness=None) -> Tensors:
        """The best candidates of one feature level."""
        scores = logits.sigmoid()
        if centerness is not None:
            scores = (scores * centerness.sigmoid()).sqrt()
        return candidates(self.anchors, level, scores, deltas, self.transform, self.candidates)
