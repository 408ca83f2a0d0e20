"""torchvision: a small model or more of every family, with detectors, segmentors, videos and optical flow."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import torch
import torchvision.models as tv
from torchvision.models import detection, optical_flow, segmentation, video

from .subject import Subject, image

CLASSIFIERS = {
    64: """alexnet convnext_tiny densenet121 densenet201 efficientnet_b0 efficientnet_b3 efficientnet_v2_s googlenet
    mnasnet0_5 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_x_3_2gf
    regnet_y_400mf regnet_y_3_2gf resnet18 resnet34 resnet50 resnet101 resnext50_32x4d shufflenet_v2_x0_5
    shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_t swin_s swin_v2_t vgg11 vgg16_bn wide_resnet50_2""",
    224: "inception_v3 maxvit_t",
}
"""Names by the side of the image in pixels. MaxViT's windows fix its size; the others take any."""
SEGMENTORS = "deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large"
VIDEOS = {64: "mc3_18 r2plus1d_18 r3d_18 swin3d_t", 128: "mvit_v1_b mvit_v2_s", 224: "s3d"}
DETECTORS = """fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn
fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2
retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16 ssdlite320_mobilenet_v3_large"""


def classifier(name: str, side: int) -> Subject:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    side = 299 if name == "inception_v3" else side
    return Subject(getattr(tv, name)(weights=None, **options), image(side, side))


def transformer(name: str, side: int = 64) -> Subject:
    return Subject(getattr(tv, name)(weights=None, image_size=side), image(side, side))


def segmentor(name: str) -> Subject:
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5, **options)
    return Subject(model, image(64, 64))


def clip(name: str, side: int) -> Subject:
    if name.startswith("mvit"):
        whole, size = video.mvit.MViT, {"spatial_size": (side, side), "temporal_size": 8}
        with patch.object(video.mvit, "MViT", lambda **options: whole(**options | size)):  # which fixes a larger size
            return Subject(getattr(video, name)(weights=None), image(8, side, side))
    return Subject(getattr(video, name)(weights=None), image(16 if name == "s3d" else 8, side, side))


def detector(name: str) -> Subject:
    sizes = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
    if name.startswith(("fcos", "retinanet")):  # random weights give low scores
        sizes |= {"score_thresh": 0.0, "detections_per_img": 20}
    if "rcnn" in name:
        sizes |= {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20, "box_detections_per_img": 10}
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3, **sizes)
    target = {
        "boxes": torch.tensor([[5.0, 5.0, 50.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 96, 128, dtype=torch.uint8),
        "keypoints": torch.tensor([[[20.0, 20.0, 1.0]] * 17]),
    }
    images = [torch.rand(3, 96, 128), torch.rand(3, 96, 128)]
    return Subject(model, images[:1], (images, [target, target]), lambda losses: sum(losses.values()))


def flow(name: str) -> Subject:
    inputs = {"image1": image(128, 128), "image2": image(128, 128), "num_flow_updates": 2}
    return Subject(getattr(optical_flow, name)(weights=None), inputs)


def _models() -> dict[str, Callable[[], Subject]]:
    known: dict[str, Callable[[], Subject]] = {}
    for side, names in CLASSIFIERS.items():
        known |= {name: lambda name=name, side=side: classifier(name, side) for name in names.split()}
    known |= {name: lambda name=name: transformer(name) for name in ("vit_b_16", "vit_b_32")}
    known |= {name: lambda name=name: segmentor(name) for name in SEGMENTORS.split()}
    for side, names in VIDEOS.items():
        known |= {name: lambda name=name, side=side: clip(name, side) for name in names.split()}
    known |= {name: lambda name=name: detector(name) for name in DETECTORS.split()}
    known |= {name: lambda name=name: flow(name) for name in ("raft_small", "raft_large")}
    return known


MODELS = _models()
