"""The dense networks of the files in `pruned/`, their input, and which of their outputs are compared."""

from __future__ import annotations

from typing import Any

import timm
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

NAMES = ("timm_resnet", "detectron2_retinanet")


def dense(name: str) -> nn.Module:
    """A freshly built dense network with random weights, in evaluation mode.

    Args:
        name: one of NAMES.
    """
    return (_resnet() if name == "timm_resnet" else _retinanet()).eval()


def inputs(name: str) -> Any:
    """One image of sine waves, 3 x 64 x 64, in the form that the network takes."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = torch.stack([torch.sin(x / 5 + y / 9), torch.cos(x * y / 300), torch.sin(y / 3)])
    return image[None] if name == "timm_resnet" else [{"image": 128 + 100 * image}]


@torch.no_grad()
def answers(model: nn.Module, given: Any) -> list[torch.Tensor]:
    """Class scores of the classifier; scores and box offsets of the detector at every anchor, before suppression."""
    if isinstance(given, torch.Tensor):
        return [model(given)]
    images = model.preprocess_image(given)
    features = model.backbone(images.tensor)
    scores, offsets = model.head([features[name] for name in model.head_in_features])
    return [*scores, *offsets]


def _resnet() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=7, channels=(8, 8, 12, 16), stem_width=8)


def _retinanet() -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.merge_from_other_cfg(
        type(cfg)({"DEPTH": 50, "NORM": "BN", "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8, "WIDTH_PER_GROUP": 4})
    )
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    return build_model(cfg)
