"""FCOS (Tian et al., 2019), selected by a YAML config; Detectron2 has this detector, but only for Python configs.

MODEL:
  META_ARCHITECTURE: FCOS
  FCOS: {NUM_CLASSES: 80}
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch import fcos


def add_fcos_config(cfg: CfgNode) -> None:
    """Adds `MODEL.FCOS`, with the defaults of Detectron2's own FCOS."""
    cfg.MODEL.FCOS = node = CfgNode()
    node.NUM_CLASSES = 80
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.NUM_CONVS = 4
    node.NORM = "GN"
    node.PRIOR_PROB = 0.01
    node.CENTER_SAMPLING_RADIUS = 1.5
    node.SCORE_THRESH_TEST = 0.2  # compared with sqrt(class score * centre-ness)
    node.TOPK_CANDIDATES_TEST = 1000
    node.NMS_THRESH_TEST = 0.6


@META_ARCH_REGISTRY.register()
class FCOS(fcos.FCOS):
    """Detectron2's FCOS, built from a config."""

    @configurable
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness):
        """Computes Detectron2's losses in float32, since the box loss combines predictions with float32 anchors."""
        logits, deltas, centerness = (
            [level.float() for level in levels] for levels in (pred_logits, pred_anchor_deltas, pred_centerness)
        )
        return super().losses(anchors, logits, gt_labels, deltas, gt_boxes, centerness)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Returns the constructor's arguments for a config."""
        node, backbone = cfg.MODEL.FCOS, build_backbone(cfg)
        shapes = backbone.output_shape()
        inputs = [shapes[name] for name in node.IN_FEATURES]
        head = fcos.FCOSHead(
            input_shape=inputs,
            num_classes=node.NUM_CLASSES,
            conv_dims=[inputs[0].channels] * node.NUM_CONVS,
            norm=node.NORM,
            prior_prob=node.PRIOR_PROB,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": list(node.IN_FEATURES),
            "num_classes": node.NUM_CLASSES,
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }
