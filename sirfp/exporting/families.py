"""Chooses the `Graph` class for the export of a model."""

from __future__ import annotations

import sys

from torch import nn

from ..errors import InputError
from ..sources.source import Source
from .graphs import ClassifierGraph, Graph, SegmentorGraph

SUPPORTED = (
    "timm's classifiers, Detectron2's semantic segmentors and its detectors (RetinaNet, FCOS; Faster, Mask and Cascade "
    "R-CNN) can be"
)


def build_graph(source: Source, model: nn.Module | None = None) -> Graph:
    """Wraps a model as a function from a tensor of images to the model's outputs.

    Args:
        source: source of the dense model.
        model: the model to wrap, e.g. a pruned model; the dense model by default.

    Raises:
        InputError: models of this class cannot be exported; the message lists the supported classes.
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
            from .two_stages import TwoStageGraph, unsupported_part

            problem = unsupported_part(model)
            if problem:
                raise InputError(f"{source.name}: {kind} cannot be exported: {problem}; {SUPPORTED}")
            return TwoStageGraph(model).eval()
    raise InputError(f"{source.name}: {kind} cannot be exported; {SUPPORTED}")
