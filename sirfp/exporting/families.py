"""Which models can be exported, and as what."""

from __future__ import annotations

import sys

from torch import nn

from ..errors import InputError
from ..source import Source
from .graphs import ClassifierGraph, Graph, SegmentorGraph

CAN = "timm's classifiers, Detectron2's semantic segmentors and its single-stage detectors (RetinaNet, FCOS) can be"


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
    if hasattr(model, "roi_heads") or hasattr(model, "proposal_generator"):
        raise InputError(
            f"{source.name}: {kind} cannot be exported: its proposals branch on their own values, which PyTorch's "
            f"exporter cannot follow; {CAN}"
        )
    if "detectron2" in sys.modules:
        from detectron2.modeling import SemanticSegmentor
        from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
        from detectron2.modeling.meta_arch.dense_detector import DenseDetector

        from .detectors import DenseDetectorGraph

        if isinstance(model, SemanticSegmentor):
            return SegmentorGraph(model).eval()
        if isinstance(model, DenseDetector) and isinstance(model.anchor_generator, DefaultAnchorGenerator):
            return DenseDetectorGraph(model).eval()
    raise InputError(f"{source.name}: {kind} cannot be exported; {CAN}")
