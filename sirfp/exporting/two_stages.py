"""Detectron2's two-stage detectors (Faster, Mask, Cascade R-CNN) as functions of one tensor.

Detectron2's inference keeps the proposals of each image in a list whose length depends on the data. The exporter cannot
trace such lists. Here the proposals of all images are rows of one tensor, with the index of their image. Padding rows
are dropped, so that the heads process the same number of proposals as in Detectron2.
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

from .detectors import DetectorGraph, candidates, clip_boxes, rows_at, sides_longer, top_scores
from .graphs import Tensors, detectron_inputs, padding_sizes
from .region_pooling import pool_regions
from .suppression import scores_after_nms

MAX_LOGIT = 80.0
"""Logits are clamped to +-80 before exp(), because float32 overflows at 88.7."""


class TwoStageGraph(DetectorGraph):
    """A detector with proposals: outputs of `DetectorGraph`, and `masks` (N, D, h, w) if the model predicts masks.

    Masks are probabilities on an h x w grid over each detection's box, equal to the masks of Detectron2's
    `inference(..., do_postprocess=False)`. In rows after an image's `count`, masks are zero.

    Args:
        model: a GeneralizedRCNN for which `unsupported_part` returns "".
    """

    def __init__(self, model: Any):
        super().__init__(model.pixel_mean, model.pixel_std, *padding_sizes(model.backbone))
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
            self.outputs, self.intermediate = (*self.outputs, "masks"), (*self.intermediate, "all_masks")

    def network(self, x: torch.Tensor, images: torch.Tensor) -> Tensors:
        """Detects objects in padded images; adds masks if the model predicts masks."""
        features = self.backbone(x)
        maps = [features[name] for name in self.in_features]
        proposals, real = self._propose([features[name] for name in self.rpn_features], images)
        boxes, scores, classes = self._detect(maps, proposals, real, images)
        if not self.heads.mask_on:
            return boxes, scores, classes
        return boxes, scores, classes, self._mask(maps, boxes, scores > self.threshold, classes)

    def original(self, images: torch.Tensor) -> Tensors:
        """Detections of Detectron2's inference, padded to D rows; masks are (N, D, h, w)."""
        if not self.heads.mask_on:
            return super().original(images)
        found = self.model_inference(detectron_inputs(images), do_postprocess=False)
        found = [one[one.pred_boxes.nonempty()] for one in found]
        for one in found:
            one.pred_masks = one.pred_masks[:, 0]
        boxes, scores, classes, masks, count = self._pad_to_limit(
            found, [("pred_boxes", 0), ("scores", 0), ("pred_classes", -1), ("pred_masks", 0)]
        )
        return boxes, scores, classes, count, masks

    def _propose(self, features: Sequence[torch.Tensor], images: torch.Tensor) -> Tensors:
        """Proposals of the RPN (N, P, 4), and a mask (N, P) that is False for padding rows."""
        found = [
            candidates(self.anchors, level, positive_scores(logits), deltas, self.rpn_transform, self.rpn_candidates)
            for level, (logits, deltas) in enumerate(zip(*self.rpn_head(features), strict=True))
        ]
        boxes, scores, _ = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        boxes = clip_boxes(boxes, images)
        scores = scores * sides_longer(boxes, self.least_side)
        levels = torch.arange(len(found)).repeat_interleave(self.rpn_candidates)  # NMS within each level
        level_scores = F.one_hot(levels, len(found)).T * scores.unsqueeze(1)
        scores = scores_after_nms(boxes, level_scores, scores, self.rpn_overlap, 0.0, self.proposals)
        scores, indices = top_scores(scores, self.proposals)
        return rows_at(boxes, indices), scores > 0

    def _detect(self, maps: Sequence[torch.Tensor], proposals: torch.Tensor, real: torch.Tensor, images: torch.Tensor):
        """Detects objects in proposals.

        Returns:
            Boxes (N, D, 4), scores (N, D) and classes (N, D). In images with fewer than D detections, the remaining
            rows have score 0.
        """
        n, count = proposals.shape[:2]
        rows = rows_and_first(real)
        boxes = proposals.flatten(0, 1)[rows]
        stage_scores = []
        for number, (pooler, head, predictor) in enumerate(self._stages()):
            if number:
                boxes = clip_boxes(boxes, images)
            logits, deltas = predictor(head(roi_features(pooler, maps, rows // count, boxes)))
            stage_scores.append(logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(1))
            boxes = predictor.box2box_transform.apply_deltas(deltas, boxes)
        num_classes = stage_scores[0].shape[1] - 1
        boxes = clip_boxes(boxes.reshape(-1, boxes.shape[1] // 4, 4), images).expand(-1, num_classes, 4)
        # a cascade averages the scores of its stages, without the background class
        probabilities = (sum(stage_scores) / len(stage_scores))[:, :num_classes]
        rows, boxes, probabilities = rows[:-1], boxes[:-1], probabilities[:-1]
        # boxes may differ between classes, so each pair of image and class is passed to NMS as one image
        scores = probabilities.new_zeros(n * count, num_classes).index_put((rows,), probabilities)
        scores = scores.reshape(n, count, num_classes).transpose(1, 2).reshape(n * num_classes, count)
        boxes = boxes.new_zeros(n * count, num_classes, 4).index_put((rows,), boxes)
        boxes = boxes.reshape(n, count, num_classes, 4).transpose(1, 2).reshape(n * num_classes, count, 4)
        scores = scores_after_nms(boxes, scores.unsqueeze(1), scores, self.overlap, self.threshold, self.limit)
        scores, indices = top_scores(scores.reshape(n, num_classes * count), self.limit)
        return rows_at(boxes.reshape(n, num_classes * count, 4), indices), scores, indices // count

    def _mask(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, real: torch.Tensor, classes: torch.Tensor):
        """Masks (N, D, h, w) of detections; zeros where `real` (N, D) is False."""
        n, count = real.shape
        rows = rows_and_first(real)
        of_res5 = isinstance(self.heads, Res5ROIHeads)
        regions = roi_features(
            self.heads.pooler if of_res5 else self.heads.mask_pooler, maps, rows // count, boxes.flatten(0, 1)[rows]
        )
        logits = self.heads.mask_head.layers(self.heads.res5(regions) if of_res5 else regions)
        if logits.shape[1] > 1:
            own = classes.flatten()[rows].reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
            logits = logits.gather(1, own)
        masks = logits.new_zeros(n * count, *logits.shape[2:]).index_put((rows[:-1],), logits[:-1, 0].sigmoid())
        return masks.reshape(n, count, *logits.shape[2:])

    def _stages(self) -> list[tuple[ROIPooler, Callable[[torch.Tensor], torch.Tensor], Any]]:
        """Pooler, head and predictor of each stage after the RPN."""
        heads = self.heads
        if isinstance(heads, Res5ROIHeads):
            return [(heads.pooler, lambda regions: heads.res5(regions).mean([2, 3]), heads.box_predictor)]
        if isinstance(heads, CascadeROIHeads):
            return [(heads.box_pooler, *pair) for pair in zip(heads.box_head, heads.box_predictor, strict=True)]
        return [(heads.box_pooler, heads.box_head, heads.box_predictor)]


def unsupported_part(model: Any) -> str:
    """The reason why a GeneralizedRCNN cannot be exported; "" if it can be exported."""
    rpn, heads = model.proposal_generator, model.roi_heads
    if type(rpn) is not RPN or not isinstance(rpn.anchor_generator, DefaultAnchorGenerator):
        return f"its proposals come from {type(rpn).__name__}, not from an RPN on plain anchors"
    if type(heads) not in (StandardROIHeads, CascadeROIHeads, Res5ROIHeads):
        return f"its ROI heads are of the class {type(heads).__name__}, which is not supported"
    if getattr(heads, "keypoint_on", False):
        return "it finds keypoints, which Detectron2 decodes in a loop over the regions"
    if any(type(predictor) is not FastRCNNOutputLayers for predictor in predictors(model)):
        return f"its boxes come from {type(predictors(model)[-1]).__name__}, which is not supported"
    problem = _unsupported_masks(heads) if heads.mask_on else ""
    if problem:
        return problem
    poolers = [module for module in model.modules() if isinstance(module, ROIPooler)]
    others = {type(one).__name__ for pooler in poolers for one in pooler.level_poolers} - {ROIAlign.__name__}
    if others:
        return f"its regions are pooled by {', '.join(sorted(others))}, not by RoIAlign"
    if predictors(model)[-1].test_topk_per_image < 1:
        return "TEST.DETECTIONS_PER_IMAGE sets no limit"
    return ""


def _unsupported_masks(heads: Any) -> str:
    """The reason why heads that predict masks cannot be exported; "" if they can be exported."""
    if not isinstance(heads.mask_head, BaseMaskRCNNHead):
        return f"its masks come from {type(heads.mask_head).__name__}, which is not supported"
    if getattr(heads, "mask_pooler", None) is None and not isinstance(heads, Res5ROIHeads):
        return "its mask head does not read pooled regions"
    return ""


def predictors(model: Any) -> list[Any]:
    """The layers of a GeneralizedRCNN that score regions: one layer, or one per stage of a cascade."""
    found = model.roi_heads.box_predictor
    return list(found) if isinstance(found, (nn.ModuleList, list)) else [found]


def rows_and_first(real: torch.Tensor) -> torch.Tensor:
    """Indices of the rows where `real` (N, D), flattened, is True; row 0 is appended.

    With row 0 the result is never empty: the exporter fails at layers with a special case for empty batches, e.g.
    BatchNorm. The caller drops the last row.
    """
    rows = real.flatten().nonzero()[:, 0]
    return torch.cat([rows, rows.new_zeros(1)])


def positive_scores(logits: torch.Tensor) -> torch.Tensor:
    """exp of logits: positive scores with the same ranking. Unlike sigmoid scores, they do not saturate."""
    return logits.clamp(-MAX_LOGIT, MAX_LOGIT).exp()


def roi_features(
    pooler: ROIPooler, maps: Sequence[torch.Tensor], images: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """Features of regions (R, C, h, w), equal to the output of Detectron2's pooler.

    Args:
        pooler: Detectron2's pooler, whose settings are used.
        maps: levels of the feature pyramid, each (N, C, H, W).
        images: (R), index of the image of each box.
        boxes: (R, 4) corners in pixels.
    """
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
