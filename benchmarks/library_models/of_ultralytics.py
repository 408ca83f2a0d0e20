"""ultralytics: detection, segmentation, poses, rotated boxes, depth and classification, of every generation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ultralytics.nn import tasks

from .subject import Subject, image

DETECTORS = """yolov3-tiny yolov5n yolov6n yolov8n yolov8n-ghost yolov8n-p2 yolov9t yolov9c yolov10n yolo11n yolo12n
yolo26n""".split()
OTHERS = {
    "yolov8n-seg": "SegmentationModel",
    "yolo11n-seg": "SegmentationModel",
    "yolo26n-seg": "SegmentationModel",
    "yolov8n-pose": "PoseModel",
    "yolo26n-pose": "PoseModel",
    "yolo11n-obb": "OBBModel",
    "yolo26n-obb": "OBBModel",
    "yolo26n-sem": "SemanticSegmentationModel",
    "yolo26n-depth": "DepthModel",
    "yolov8n-cls": "ClassificationModel",
    "yolo11n-cls": "ClassificationModel",
    "yolo12n-cls": "ClassificationModel",
    "yolov8s-world": "WorldModel",
    "yolov8n-rtdetr": "RTDETRDetectionModel",
    "rtdetr-l": "RTDETRDetectionModel",
    "rtdetr-resnet50": "RTDETRDetectionModel",
}


def model(name: str, kind: str) -> Subject:
    side = 160 if "rtdetr" in name else 64
    built = getattr(tasks, kind)(f"{name}.yaml", nc=5, verbose=False)
    if kind == "WorldModel":  # features of the names of the classes, random until they are set, and in no state dict
        built.txt_feats = torch.randn(built.txt_feats.shape, generator=torch.Generator().manual_seed(0))
    return Subject(built, image(side, side))


def _models() -> dict[str, Callable[[], Subject]]:
    kinds = dict.fromkeys(DETECTORS, "DetectionModel") | OTHERS
    return {name: lambda name=name, kind=kind: model(name, kind) for name, kind in kinds.items()}


MODELS = _models()
