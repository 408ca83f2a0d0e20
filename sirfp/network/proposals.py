"""Two-stage detectors counted without chance: as many proposals and detections as the config allows, always.

How many boxes survive NMS hangs on the image and the weights, and with it what the box, mask and keypoint
heads cost. Under `fixed_proposals` every region proposal network returns exactly its POST_NMS_TOPK_TEST boxes an
image, and the heads that look at detections see exactly TEST.DETECTIONS_PER_IMAGE, repeating those there are.
Pasting masks into the image, whose cost hangs on the boxes too and which is no part of the network, is left out, as
it is by Detectron2's own analysis.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


@contextmanager
def fixed_proposals(model: nn.Module, most: int = sys.maxsize) -> Iterator[None]:
    """While active, a two-stage detector in evaluation mode looks at a fixed number of boxes in each image.

    Any other model is left alone. The model must not be copied meanwhile.

    Args:
        model: the detector.
        most: boxes at most, for a quick try.
    """
    patched: list[tuple[nn.Module, str]] = []

    def patch(module: nn.Module, name: str, wrapper: Callable) -> None:
        patched.append((module, name))
        setattr(module, name, wrapper(module, getattr(module, name)))

    if "detectron2" in sys.modules:
        for module in model.modules():
            if isinstance(getattr(module, "post_nms_topk", None), dict) and hasattr(module, "predict_proposals"):
                patch(module, "predict_proposals", partial(_proposing, most=most))
            if hasattr(module, "forward_with_given_boxes") and detections_per_image(module):
                patch(module, "forward_with_given_boxes", partial(_detecting, most=most))
    try:
        yield
    finally:
        for module, name in patched:
            delattr(module, name)  # the class's own method is there again


def detections_per_image(heads: nn.Module) -> int:
    """How many detections the box head of `ROIHeads` returns at most, 0 where it has none."""
    predictor = getattr(heads, "box_predictor", None)
    if isinstance(predictor, nn.ModuleList):  # a cascade
        predictor = predictor[-1]
    return int(getattr(predictor, "test_topk_per_image", 0))


def _proposing(module: nn.Module, predict: Callable, most: int) -> Callable:
    count = min(module.post_nms_topk[False], most)

    def predict_proposals(anchors, logits, deltas, image_sizes):
        proposals = predict(anchors, logits, deltas, image_sizes)
        return proposals if module.training else [exactly(p[:count], count) for p in proposals]

    return predict_proposals


def _detecting(module: nn.Module, forward: Callable, most: int) -> Callable:
    count = min(detections_per_image(module), most)

    def forward_with_given_boxes(features, instances):
        result = forward(features, [exactly(given[:count], count) for given in instances])
        for given in result:
            if given.has("pred_masks"):
                given.pred_masks = _unpasted(given.pred_masks[:, 0])
        return result

    return forward_with_given_boxes


def _unpasted(masks: torch.Tensor) -> Any:
    """Masks of boxes, (N, M, M), that become empty masks of images."""
    from detectron2.structures import BitMasks, ROIMasks

    class Unpasted(ROIMasks):
        def __getitem__(self, item) -> Unpasted:
            return Unpasted(self.tensor[item])

        def to_bitmasks(self, boxes, height, width, threshold=0.5) -> BitMasks:
            return BitMasks(self.tensor.new_zeros(len(self), height, width, dtype=torch.bool))

    return Unpasted(masks)


def exactly(instances: Any, count: int) -> Any:
    """`Instances` of `count` members: the given ones over and over, or whole-image boxes where there is none."""
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
    """Boxes that stand for those which a Fast R-CNN is given with each image (`PrecomputedProposals`)."""
    from detectron2.structures import Boxes, Instances

    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
    boxes = Boxes(torch.cat([corners[:, 0], corners[:, 1].clamp_min(8)], dim=1))
    return Instances((height, width), proposal_boxes=boxes, objectness_logits=torch.rand(count, generator=generator))
