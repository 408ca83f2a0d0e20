"""Small segmentors of Detectron2, built from configs, for the tests of several packages."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn

from sirfp.config import add_sirfp_config

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
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", "test_efficientnet"
        cfg.MODEL.TIMM.OUTPUT_STRIDE, cfg.MODEL.TIMM.NORM = 16, "" if norm == "BN" else norm
        cfg.MODEL.TIMM.OUT_FEATURES = ["stride4", "stride16"]
        sem_seg.IN_FEATURES, sem_seg.PROJECT_FEATURES = ["stride4", "stride16"], ["stride4"]
    elif backbone in WHOLE:
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", backbone
        cfg.MODEL.TIMM.OPTIONS = CfgNode(WHOLE[backbone], new_allowed=True)
        cfg.MODEL.TIMM.OUT_FEATURES = sem_seg.IN_FEATURES = ["stride4", "stride8", "stride16", "stride32"]
    else:
        resnets.DEPTH = int(backbone)
        resnets.RES2_OUT_CHANNELS = 32 if backbone == "50" else 64
        resnets.WIDTH_PER_GROUP = 8 if backbone == "50" else 64
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
