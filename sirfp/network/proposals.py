"""Fixes the number of boxes in two-stage detectors, so that their FLOPs do not depend on the image.

The number of boxes after NMS depends on the image and the weights. So do the FLOPs of the box, mask and keypoint heads.
While `fixed_proposals` is active, every region proposal network returns exactly POST_NMS_TOPK_TEST boxes per image, and
the heads that read detections get exactly TEST.DETECTIONS_PER_IMAGE boxes. If the network finds fewer boxes, they are
repeated. Masks are not pasted into the image, as in Detectron2's own analysis: pasting is not part of the network, and
its cost depends on the boxes too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from .walk import walk, walk_modules

BOXES = 7
"""Boxes per image where their number does not count: the heads of a detector treat all boxes alike, so a few suffice.
A prime number, so that hardly any width is a multiple of it."""


@contextmanager
def fixed_proposals(model: nn.Module, most: int = sys.maxsize) -> Iterator[None]:
    """Fixes, while active, the number of boxes per image of a two-stage detector in evaluation mode.

    Other models are not changed. The model must not be copied while this is active.

    Args:
        model: the detector.
        most: the largest number of boxes per image; a small number makes a trial run fast.
    """
    patched: list[tuple[nn.Module, str]] = []

    def patch(module: nn.Module, name: str, wrapper: Callable) -> None:
        patched.append((module, name))
        setattr(module, name, wrapper(module, getattr(module, name)))

    if "detectron2" in sys.modules:
        for module in walk_modules(model):
            if isinstance(getattr(module, "post_nms_topk", None), dict) and hasattr(module, "predict_proposals"):
                patch(module, "predict_proposals", partial(_proposing, most=most))
            if _reads_boxes(module):
                patch(module, "forward_with_given_boxes", partial(_detecting, most=most))
    try:
        yield
    finally:
        for module, name in patched:
            delattr(module, name)  # the method of the class becomes visible again


def box_heads(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the modules of a two-stage detector that read boxes (`ROIHeads`); of other models none."""
    return tuple(name for name, module in walk(model) if _reads_boxes(module))


def _reads_boxes(module: nn.Module) -> bool:
    return hasattr(module, "forward_with_given_boxes") and detections_per_image(module) > 0


def detections_per_image(heads: nn.Module) -> int:
    """Returns the largest number of detections per image of `ROIHeads`, 0 if they have no box head."""
    predictor: Any = getattr(heads, "box_predictor", None)
    if isinstance(predictor, nn.ModuleList):  # a cascade
        predictor = predictor[-1]
    return int(getattr(predictor, "test_topk_per_image", 0))


def _proposing(module: Any, predict: Callable, most: int) -> Callable:
    """Returns a `predict_proposals` for a region proposal network that yields a fixed number of boxes per image."""
    count = min(module.post_nms_topk[False], most)

    def predict_proposals(anchors, logits, deltas, image_sizes):
        proposals = predict(anchors, logits, deltas, image_sizes)
        return proposals if module.training else [exactly(p[:count], count) for p in proposals]

    return predict_proposals


def _detecting(module: nn.Module, forward: Callable, most: int) -> Callable:
    """Returns a `forward_with_given_boxes` for ROI heads that reads a fixed number of boxes and pastes no masks."""
    count = min(detections_per_image(module), most)

    def forward_with_given_boxes(features, instances):
        result = forward(features, [exactly(given[:count], count) for given in instances])
        for given in result:
            if given.has("pred_masks"):
                given.pred_masks = _unpasted(given.pred_masks[:, 0])
        return result

    return forward_with_given_boxes


def _unpasted(masks: torch.Tensor) -> Any:
    """Wraps masks of boxes, (N, M, M), so that pasting them into an image returns empty masks at no cost."""
    from detectron2.structures import BitMasks, ROIMasks

    class Unpasted(ROIMasks):
        def __getitem__(self, item) -> Unpasted:
            return Unpasted(self.tensor[item])

        def to_bitmasks(self, boxes, height, width, threshold=0.5) -> BitMasks:
            return BitMasks(self.tensor.new_zeros(len(self), height, width, dtype=torch.bool))

    return Unpasted(masks)


def exactly(instances: Any, count: int) -> Any:
    """Returns `Instances` with `count` members: the given members, repeated; if there are none, whole-image boxes."""
    found = len(instances)
    if found == count:
        return instances
    if found:
        return instances[torch.arange(count) % found]
    height, width = instances.image_size
    whole = torch.tensor([0.0, 0.0, float(width), float(height)])
    rotated = torch.tensor([width / 2, height / 2, float(width), float(height), 0.0])
    filled = type(instances)(instances.image_size)
    for name, field in instances.get_fields().items():
        if hasattr(field, "tensor"):
            box = whole if field.tensor.shape[1] == 4 else rotated
            filled.set(name, type(field)(box.to(field.tensor).repeat(count, 1)))
        else:
            filled.set(name, field.new_zeros(count, *field.shape[1:]))
    return filled


def random_proposals(height: int, width: int, count: int, generator: torch.Generator) -> Any:
    """Returns random boxes as input of a Fast R-CNN, in place of precomputed proposals (`PrecomputedProposals`).

    Args:
        height: the image's height in pixels.
        width: the image's width in pixels.
        count: the number of boxes.
        generator: the random number generator for corners and scores.
    """
    from detectron2.structures import Boxes, Instances

    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
    boxes = Boxes(torch.cat([corners[:, 0], corners[:, 1].clamp_min(8)], dim=1))
    return Instances((height, width), proposal_boxes=boxes, objectness_logits=torch.rand(count, generator=generator))
