"""Detectron2's detectors in two stages (Faster, Mask, Cascade R-CNN) as functions of one tensor.

Detectron2's own inference takes each image's proposals apart in lists whose lengths depend on values; here they are
rows of tensors beside the number of their image, of as many as there are, so that heads compute no more than there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import nn
from torch.nn import functional as F

from .detectors import DetectorGraph, best, candidates, clipped, filled, rows_at
from .graphs import Tensors, as_dicts, sides
from .region_pooling import pool_regions
from .suppression import surviving

MOST = 80.0  # of a logit's size before its exponential is taken


class TwoStageGraph(DetectorGraph):
    """A detector with proposals: as `DetectorGraph`, and `masks` (N, D, h, w) where the model has them.

    Masks are the probabilities that the model gives for positions of a grid on each detection's box, as Detectron2's
    `inference(..., do_postprocess=False)` has them, zeros beyond an image's count.

    Args:
        model: a GeneralizedRCNN that `obstacle` says nothing about.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model.pixel_mean, model.pixel_std, *sides(model.backbone))
        rpn, heads = model.proposal_generator, model.roi_heads
        self.backbone, self.rpn_head, self.anchors = model.backbone, rpn.rpn_head, rpn.anchor_generator
        self.rpn_features, self.rpn_transform = list(rpn.in_features), rpn.box2box_transform
        self.rpn_candidates, self.proposals = rpn.pre_nms_topk[False], rpn.post_nms_topk[False]
        self.rpn_overlap, self.least_side = rpn.nms_thresh, rpn.min_box_size
        self.heads, self.model_inference, self.call = heads, model.inference, model.forward
        self.in_features = list(heads.in_features)
        last = predictors(model)[-1]
        self.threshold, self.overlap = last.test_score_thresh, last.test_nms_thresh
        self.limit = last.test_topk_per_image
        if heads.mask_on:
            self.outputs, self.between = (*self.outputs, "masks"), (*self.between, "all_masks")

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """The best detections of padded images, and their masks."""
        features = self.backbone(x)
        maps = [features[name] for name in self.in_features]
        proposals, real = self._propose([features[name] for name in self.rpn_features], images)
        boxes, scores, classes = self._detect(maps, proposals, real, images)
        if not self.heads.mask_on:
            return boxes, scores, classes
        return boxes, scores, classes, self._mask(maps, boxes, scores > self.threshold, classes)

    def original(self, images: torch.Tensor) -> Tensors:
        """Detections as Detectron2 returns them, filled up to D; masks before they are drawn on the image."""
        if not self.heads.mask_on:
            return super().original(images)
        found = self.model_inference(as_dicts(images), do_postprocess=False)
        found = [one[one.pred_boxes.nonempty()] for one in found]
        for one in found:
            one.pred_masks = one.pred_masks[:, 0]
        boxes, scores, classes, masks, count = self._filled_up(
            found, [("pred_boxes", 0), ("scores", 0), ("pred_classes", -1), ("pred_masks", 0)]
        )
        return boxes, scores, classes, count, masks

    def _propose(self, features: Sequence[torch.Tensor], images: torch.Tensor) -> Tensors:
        """The RPN's proposals (N, P, 4), and which are some and not filling, (N, P)."""
        found = [
            candidates(self.anchors, level, positive(logits), deltas, self.rpn_transform, self.rpn_candidates)
            for level, (logits, deltas) in enumerate(zip(*self.rpn_head(features), strict=True))
        ]
        boxes, scores, _ = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        boxes = clipped(boxes, images)
        scores = scores * filled(boxes, self.least_side)
        levels = torch.arange(len(found)).repeat_interleave(self.rpn_candidates)  # NMS looks at each level apart
        spread = F.one_hot(levels, len(found)).T * scores.unsqueeze(1)
        scores = surviving(boxes, spread, scores, self.rpn_overlap, 0.0, self.proposals)
        scores, places = best(scores, self.proposals)
        return rows_at(boxes, places), scores > 0

    def _detect(self, maps: Sequence[torch.Tensor], proposals: torch.Tensor, real: torch.Tensor, images: torch.Tensor):
        """The best detections of the proposals: boxes (N, D, 4), scores (N, D), 0 where there are fewer, classes."""
        n, count = proposals.shape[:2]
        rows = and_one(real)
        boxes = proposals.flatten(0, 1)[rows]
        each = []
        for number, (pooler, head, predictor) in enumerate(self._stages()):
            if number:
                boxes = clipped(boxes, images)
            logits, deltas = predictor(head(pooled(pooler, maps, rows // count, boxes)))
            each.append(logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(1))
            boxes = predictor.box2box_transform.apply_deltas(deltas, boxes)
        num_classes = each[0].shape[1] - 1
        boxes = clipped(boxes.reshape(-1, boxes.shape[1] // 4, 4), images).expand(-1, num_classes, 4)
        chances = (sum(each) / len(each))[:, :num_classes]
        rows, boxes, chances = rows[:-1], boxes[:-1], chances[:-1]
        # a class of an image is to NMS an image of its own, as each class may have other boxes
        scores = chances.new_zeros(n * count, num_classes).index_put((rows,), chances)
        scores = scores.reshape(n, count, num_classes).transpose(1, 2).reshape(n * num_classes, count)
        boxes = boxes.new_zeros(n * count, num_classes, 4).index_put((rows,), boxes)
        boxes = boxes.reshape(n, count, num_classes, 4).transpose(1, 2).reshape(n * num_classes, count, 4)
        scores = surviving(boxes, scores.unsqueeze(1), scores, self.overlap, self.threshold, self.limit)
        scores, places = best(scores.reshape(n, num_classes * count), self.limit)
        return rows_at(boxes.reshape(n, num_classes * count, 4), places), scores, places // count

    def _mask(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, real: torch.Tensor, classes: torch.Tensor):
        """Masks (N, D, h, w) of detections, zeros where `real` says that there is none."""
        n, count = real.shape
        rows = and_one(real)
        of_res5 = isinstance(self.heads, Res5ROIHeads)
        regions = pooled(
            self.heads.pooler if of_res5 else self.heads.mask_pooler, maps, rows // count, boxes.flatten(0, 1)[rows]
        )
        logits = self.heads.mask_head.layers(self.heads.res5(regions) if of_res5 else regions)
        if logits.shape[1] > 1:
            own = classes.flatten()[rows].reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
            logits = logits.gather(1, own)
        masks = logits.new_zeros(n * count, *logits.shape[2:]).index_put((rows[:-1],), logits[:-1, 0].sigmoid())
        return masks.reshape(n, count, *logits.shape[2:])

    def _stages(self) -> list[tuple[ROIPooler, Callable, nn.Module]]:
        """Pooler, head and predictor of each stage after the proposals."""
        heads = self.heads
        if isinstance(heads, Res5ROIHeads):
            return [(heads.pooler, lambda regions: heads.res5(regions).mean([2, 3]), heads.box_predictor)]
        if isinstance(heads, CascadeROIHeads):
            return [(heads.box_pooler, *pair) for pair in zip(heads.box_head, heads.box_predictor, strict=True)]
        return [(heads.box_pooler, heads.box_head, heads.box_predictor)]


def obstacle(model: nn.Module) -> str:
    """Why a GeneralizedRCNN cannot be exported; nothing if it can."""
    rpn, heads = model.proposal_generator, model.roi_heads
    if type(rpn) is not RPN or not isinstance(rpn.anchor_generator, DefaultAnchorGenerator):
        return f"its proposals come from {type(rpn).__name__}, not from an RPN on plain anchors"
    if type(heads) not in (StandardROIHeads, CascadeROIHeads, Res5ROIHeads):
        return f"its regions go through {type(heads).__name__}, which is not known"
    if getattr(heads, "keypoint_on", False):
        return "it finds keypoints, region by region in a loop"
    if any(type(predictor) is not FastRCNNOutputLayers for predictor in predictors(model)):
        return f"its boxes come from {type(predictors(model)[-1]).__name__}, which is not known"
    if heads.mask_on and not isinstance(heads.mask_head, BaseMaskRCNNHead):
        return f"its masks come from {type(heads.mask_head).__name__}, which is not known"
    if heads.mask_on and getattr(heads, "mask_pooler", None) is None and not isinstance(heads, Res5ROIHeads):
        return "its masks are not pooled from regions"
    poolers = [module for module in model.modules() if isinstance(module, ROIPooler)]
    others = {type(one).__name__ for pooler in poolers for one in pooler.level_poolers} - {ROIAlign.__name__}
    if others:
        return f"its regions are pooled by {', '.join(sorted(others))}, not by RoIAlign"
    if predictors(model)[-1].test_topk_per_image < 1:
        return "TEST.DETECTIONS_PER_IMAGE sets no limit"
    return ""


def predictors(model: nn.Module) -> list[Any]:
    """The layers of a GeneralizedRCNN that score its regions, one or one a stage."""
    found = model.roi_heads.box_predictor
    return list(found) if isinstance(found, (nn.ModuleList, list)) else [found]


def and_one(real: torch.Tensor) -> torch.Tensor:
    """Numbers of the rows where `real` (N, D) holds, and the first once more.

    So that there is always one: the exporter stops at layers that differ for none, such as BatchNorm.
    """
    rows = real.flatten().nonzero()[:, 0]
    return torch.cat([rows, rows.new_zeros(1)])


def positive(logits: torch.Tensor) -> torch.Tensor:
    """Positive numbers in the order of logits, as finely graded as these."""
    return logits.clamp(-MOST, MOST).exp()


def pooled(pooler: ROIPooler, maps: Sequence[torch.Tensor], images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """What Detectron2's pooler gives, (R, C, h, w), for boxes (R, 4) in pixels of the images of numbers (R)."""
    levels = torch.zeros_like(images)
    if len(pooler.level_poolers) > 1:  # FPN (CVPR 2017), equation 1
        sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        levels = (pooler.canonical_level + torch.log2(sides / pooler.canonical_box_size + 1e-8)).floor()
        levels = levels.nan_to_num().clamp(pooler.min_level, pooler.max_level).long() - pooler.min_level
    regions = torch.cat([images.to(boxes.dtype).unsqueeze(1), boxes], dim=1)
    first = pooler.level_poolers[0]
    scales = [one.spatial_scale for one in pooler.level_poolers]
    ratio, (height, width) = first.sampling_ratio, first.output_size
    return pool_regions(list(maps), regions, levels, scales, height, width, ratio, first.aligned)
