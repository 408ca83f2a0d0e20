"""Detectron2's single-stage detectors (RetinaNet, FCOS) as functions of one tensor, including decoding and NMS."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .detectors import DetectorGraph, candidates, rows_at, top_scores
from .graphs import Tensors, padding_sizes
from .suppression import scores_after_nms


class DenseDetectorGraph(DetectorGraph):
    """A single-stage detector.

    Args:
        model: a RetinaNet or an FCOS.
    """

    def __init__(self, model: Any):
        super().__init__(model.pixel_mean, model.pixel_std, *padding_sizes(model.backbone))
        self.backbone, self.head, self.anchors = model.backbone, model.head, model.anchor_generator
        self.in_features, self.num_classes = list(model.head_in_features), model.num_classes
        self.transform = model.box2box_transform
        self.threshold, self.overlap = model.test_score_thresh, model.test_nms_thresh
        self.candidates = model.test_topk_candidates
        self.limit, self.call = model.max_detections_per_image, model.forward

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """Detects objects in padded images.

        Returns:
            Boxes (N, D, 4), scores (N, D) and classes (N, D), where D is the limit of detections per image. In images
            with fewer detections, the remaining rows have score 0.
        """
        features = self.backbone(x)
        maps = zip(*self.head([features[name] for name in self.in_features]), strict=True)
        found = [self._level(level, *each) for level, each in enumerate(maps)]
        boxes, scores, classes = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        class_scores = F.one_hot(classes, self.num_classes).transpose(1, 2) * scores.unsqueeze(1)
        scores = scores_after_nms(boxes, class_scores, scores, self.overlap, self.threshold, self.limit)
        scores, indices = top_scores(scores, self.limit)
        return rows_at(boxes, indices), scores, classes.gather(1, indices)

    def _level(self, level, logits, deltas, centerness=None) -> Tensors:
        """Selects the candidates of highest score on one feature level; returns the output of `candidates`."""
        scores = logits.sigmoid()
        if centerness is not None:
            scores = (scores * centerness.sigmoid()).sqrt()
        return candidates(self.anchors, level, scores, deltas, self.transform, self.candidates)
