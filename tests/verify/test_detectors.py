"""Detectors of every kind in the model zoo equal their masked dense model on the same boxes."""

from __future__ import annotations

import copy

import pytest
import torch
from marks import slow_but

import sirfp
from sirfp.network.forward import call, inference
from sirfp.sources.source import from_zoo
from sirfp.verify import expand
from sirfp.verify.detectors import compare_continuous, is_detector

SMALL = (
    "MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 "
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "MODEL.SEM_SEG_HEAD.CONVS_DIM 16 MODEL.SEM_SEG_HEAD.NORM BN MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (16,16) "
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 20 TEST.DETECTIONS_PER_IMAGE 10 MODEL.RETINANET.SCORE_THRESH_TEST 0.0"
).split()
KINDS = {
    "COCO-Detection/retinanet_R_50_FPN_1x": "head.cls_score",
    "COCO-Detection/rpn_R_50_FPN_1x": "proposal_generator.rpn_head.objectness_logits",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": "roi_heads.mask_head.predictor",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x": "roi_heads.keypoint_head.score_lowres",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": "roi_heads.box_predictor.2.bbox_pred",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x": "sem_seg_head.predictor",
}
QUICK = [
    "COCO-Detection/retinanet_R_50_FPN_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
]
"""One stage, two with masks, and maps beside boxes."""


@pytest.mark.parametrize("config", slow_but(KINDS, *QUICK))
def test_pruned_detector_equals_masked(config):
    torch.manual_seed(0)
    source = from_zoo(config, SMALL, size=(64, 96))
    inputs, pruned = source.example(), source.fresh()
    with inference(source.model):
        assert is_detector(call(source.model, inputs))
    plan = sirfp.prune(pruned, inputs, "random", 0.5)
    expand(source.model, plan, pruned.state_dict())
    found = compare_continuous(source.model, pruned, inputs, plan)
    assert not found.problem and 0 < found.relative < 1e-4

    other = copy.deepcopy(pruned)
    with torch.no_grad():  # a layer that only the named head has
        other.get_submodule(KINDS[config]).weight.add_(0.5)
    assert compare_continuous(source.model, other, inputs, plan).relative > 1e-3
