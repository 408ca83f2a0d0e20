"""Detectron2's segmentors: cut by random plans they equal the dense network with the same channels zero."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.utils.analysis import FlopCountAnalysis
from test_channels import random_keep
from torch import nn

from sirfp.channels import find_groups
from sirfp.config import add_sirfp_config
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask

WHOLE = {"hrnet_w18_small": {"feature_location": ""}, "pvt_v2_b0": {}}
"""Networks of timm that give features of four strides, with options of their own."""


def segmentor(head: str, backbone: str, norm: str) -> nn.Module:
    """A small-headed segmentor of 5 classes with random statistics."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_sirfp_config(cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "SemanticSegmentor"
    resnets, sem_seg = cfg.MODEL.RESNETS, cfg.MODEL.SEM_SEG_HEAD
    resnets.NORM, sem_seg.NORM = norm, "BN" if norm == "FrozenBN" else norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    sem_seg.NAME, sem_seg.NUM_CLASSES, sem_seg.LOSS_TYPE = head, 5, "cross_entropy"
    sem_seg.CONVS_DIM = sem_seg.ASPP_CHANNELS = 24
    sem_seg.PROJECT_CHANNELS, sem_seg.PROJECT_FEATURES = [12], ["res2"]
    sem_seg_features = {"DeepLabV3Head": ["res5"], "DeepLabV3PlusHead": ["res2", "res5"]}
    sem_seg.IN_FEATURES = {**sem_seg_features, "PyramidPoolingHead": ["res5"]}.get(head, [])
    sem_seg.COMMON_STRIDE = 4
    resnets.OUT_FEATURES = sem_seg.IN_FEATURES
    if backbone == "timm":
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", "tf_efficientnet_lite0"
        cfg.MODEL.TIMM.OUTPUT_STRIDE, cfg.MODEL.TIMM.NORM = 16, "" if norm == "BN" else norm
        cfg.MODEL.TIMM.OUT_FEATURES = ["stride4", "stride16"]
        sem_seg.IN_FEATURES, sem_seg.PROJECT_FEATURES = ["stride4", "stride16"], ["stride4"]
    elif backbone in WHOLE:
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", backbone
        cfg.MODEL.TIMM.OPTIONS = CfgNode(WHOLE[backbone], new_allowed=True)
        cfg.MODEL.TIMM.OUT_FEATURES = sem_seg.IN_FEATURES = ["stride4", "stride8", "stride16", "stride32"]
    else:
        resnets.DEPTH = int(backbone)
        resnets.RES2_OUT_CHANNELS = 256 if backbone == "50" else 64
        if head == "PyramidPoolingHead":
            sem_seg.COMMON_STRIDE = 32
        if head == "DeepLabV3Head":
            sem_seg.COMMON_STRIDE = 16 if backbone == "50" else 32
        if head.startswith("DeepLab") and backbone == "50":
            cfg.MODEL.BACKBONE.NAME, resnets.RES5_MULTI_GRID = "build_resnet_deeplab_backbone", [1, 2, 4]
            resnets.RES5_DILATION, resnets.STRIDE_IN_1X1 = 2, False
    if head == "SemSegFPNHead":
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        resnets.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.OUT_CHANNELS, sem_seg.IN_FEATURES = 32, ["p2", "p3", "p4", "p5"]
        sem_seg.NORM = "" if norm == "FrozenBN" else norm
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def image(side: int = 64) -> list[dict]:
    return [{"image": torch.rand(3, side, side) * 255, "height": side, "width": side}]


CASES = [
    ("PyramidPoolingHead", "18", "BN"),
    ("ConcatenationHead", "hrnet_w18_small", "BN"),
    ("DeepLabV3Head", "50", "BN"),
    ("DeepLabV3Head", "18", "FrozenBN"),
    ("DeepLabV3PlusHead", "50", "FrozenBN"),
    ("DeepLabV3PlusHead", "18", "SyncBN"),
    ("SemSegFPNHead", "50", "SyncBN"),
    ("SemSegFPNHead", "18", "BN"),
    ("DeepLabV3PlusHead", "timm", "BN"),
    ("DeepLabV3PlusHead", "timm", "FrozenBN"),
]


@pytest.mark.parametrize(("head", "backbone", "norm"), CASES)
def test_pruned_equals_masked(head, backbone, norm):
    model = segmentor(head, backbone, norm)
    found = find_groups(model, image())
    made = {f.name for f in found.frozen}
    assert all("predictor" in name for name in made), made  # nothing but the classifier stays whole
    plan = plan_for(found, random_keep(found, 0))
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    difference = compare(masked, pruned, image())
    assert not difference.problem and difference.relative < 1e-4
    assert plan.params[1] == sum(p.numel() for p in pruned.parameters())
    assert plan.flops[1] == FlopCountAnalysis(pruned, image()).unsupported_ops_warnings(False).total()
    for name, shape in pruned.backbone.output_shape().items():
        assert pruned.backbone(torch.zeros(1, 3, 64, 64))[name].shape[1] == shape.channels


def test_a_transformer_keeps_only_what_its_own_code_repeats():
    model = segmentor("AllMLPHead", "pvt_v2_b0", "BN")
    found = find_groups(model, image())
    whole = {f.name for f in found.frozen}
    assert all(name.endswith((".attn.q", ".attn.sr", ".proj", "predictor")) for name in whole), whole
    plan = plan_for(found, random_keep(found, 0))
    assert plan.flops[1] < 0.6 * plan.flops[0]
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    difference = compare(masked, pruned, image())
    assert not difference.problem and difference.relative < 1e-4


STEPS = [
    ("DeepLabV3PlusHead", "18"),
    ("PyramidPoolingHead", "18"),
    ("ConcatenationHead", "hrnet_w18_small"),
    ("AllMLPHead", "pvt_v2_b0"),
]


@pytest.mark.parametrize(("head", "backbone"), STEPS)
def test_a_pruned_segmentor_takes_a_training_step(head, backbone):
    model = segmentor(head, backbone, "BN")
    found = find_groups(model, image())
    apply(model, plan_for(found, random_keep(found, 1)))
    batch = [{**image()[0], "sem_seg": torch.randint(0, 5, (64, 64))} for _ in range(2)]
    loss = sum(model.train()(batch).values())
    loss.backward()
    assert torch.isfinite(loss)
