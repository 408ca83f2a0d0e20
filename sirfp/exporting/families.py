"""Which models can be exported, and as what."""

from __future__ import annotations

import sys

from torch import nn

from ..errors import InputError
from ..sources.source import Source
from .graphs import ClassifierGraph, Graph, SegmentorGraph

CAN = (
    "timm's classifiers, Detectron2's semantic segmentors and its detectors (RetinaNet, FCOS; Faster, Mask and Cascade "
    "R-CNN) can be"
)


def build_graph(source: Source, model: nn.Module | None = None) -> Graph:
    """A model as a function of images.

    Args:
        source: the dense model.
        model: the pruned one, if that is meant.

    Raises:
        InputError: it is of a kind that cannot be exported.
    """
    model = (model or source.model).eval()
    preprocessing = getattr(source, "preprocessing", None)
    if preprocessing:
        return ClassifierGraph(model, preprocessing["mean"], preprocessing["std"]).eval()
    kind = type(model).__name__
    if "detectron2" in sys.modules:
        from detectron2.modeling import GeneralizedRCNN, SemanticSegmentor
        from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
        from detectron2.modeling.meta_arch.dense_detector import DenseDetector

        from .single_stage import DenseDetectorGraph

        if isinstance(model, SemanticSegmentor):
            return SegmentorGraph(model).eval()
        if isinstance(model, DenseDetector) and isinstance(model.anchor_generator, DefaultAnchorGenerator):
            return DenseDetectorGraph(model).eval()
        if type(model) is GeneralizedRCNN:
            from .two_stages import TwoStageGraph, obstacle

            if obstacle(model):
                raise InputError(f"{source.name}: {kind} cannot be exported: {obstacle(model)}; {CAN}")
            return TwoStageGraph(model).eval()
    raise InputError(f"{source.name}: {kind} cannot be exported; {CAN}")
