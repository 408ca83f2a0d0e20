"""Support for Detectron2's models: announced widths, inputs for training branches, running averages in attributes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .timm_attributes import TimmWidths
from .walk import walk, walk_modules

INSTALL = (
    "install it by `pip install '.[detectron2]' && sh requirements/detectron2.sh` in a checkout of sirfp, or from "
    "Detectron2's source; networks of timm (--timm) need no Detectron2"
)
"""How to install Detectron2, the end of messages."""


def check_detectron2(asked: str) -> None:
    """Raises InputError if Detectron2, or a package that it needs, is not installed.

    Args:
        asked: what needs it, the beginning of the message, e.g. "a config".
    """
    try:
        importlib.import_module("detectron2.config")
    except ModuleNotFoundError as error:
        lacks = "is not installed" if error.name == "detectron2" else f"lacks the package {error.name!r}"
        raise InputError(f"{asked} needs Detectron2, which {lacks}: {INSTALL}") from None


class feature_widths:  # noqa: N801  (a context manager, used like a function)
    """Records, while active, the channels of each feature whose width a Detectron2 or timm network stores.

    A Detectron2 backbone stores the widths of its outputs in `_out_feature_channels`, which is used to build heads.

    Attributes:
        found: {module name: {feature name: channel labels}}.
    """

    def __init__(self, model: nn.Module, trace):
        self.model, self.trace = model, trace
        self.found: dict[str, dict[str, Any]] = {}
        self.handles: list = []
        self.timm = TimmWidths(model, trace, self.found)

    def __enter__(self) -> feature_widths:
        self.timm.__enter__()
        for name, module in walk(self.model):
            if isinstance(getattr(module, "_out_feature_channels", None), dict):
                self.handles.append(module.register_forward_hook(self._note(name)))
        return self

    def _note(self, name: str):
        def hook(module, inputs, output):
            if not isinstance(output, Mapping):
                return
            for feature, tensor in output.items():
                if isinstance(tensor, torch.Tensor) and tensor.dim() > 1:
                    labels = self.trace.dim(tensor, 1)
                    if labels is not None and feature in module._out_feature_channels:
                        self.found.setdefault(name, {})[feature] = labels

        return hook

    def __exit__(self, *exc) -> None:
        self.timm.__exit__(*exc)
        for handle in self.handles:
            handle.remove()


def training_inputs(model: nn.Module, inputs: list[dict]) -> list[dict]:
    """Adds an artificial annotation to each input that has no annotation, because Detectron2's losses need one.

    Args:
        model: the model, from which the number of keypoints is read.
        inputs: Detectron2's `list[dict]`; not changed.

    Returns:
        Copies of the inputs with `instances` of one box, mask and set of keypoints, and `sem_seg` of class 0.
    """
    if "detectron2" not in sys.modules:
        return inputs
    from detectron2.structures import BitMasks, Boxes, Instances, Keypoints

    result = []
    for given in inputs:
        item = dict(given)
        _, height, width = item["image"].shape
        if "instances" not in item:
            box = torch.tensor([[width * 0.2, height * 0.2, width * 0.8, height * 0.8]])
            instances = Instances((height, width), gt_boxes=Boxes(box), gt_classes=torch.zeros(1, dtype=torch.long))
            mask = torch.zeros(1, height, width, dtype=torch.bool)
            mask[:, height // 4 : height // 2, width // 4 : width // 2] = True
            instances.gt_masks = BitMasks(mask)
            points = torch.tensor([width * 0.5, height * 0.5, 2.0]).repeat(1, _keypoints(model), 1)
            instances.gt_keypoints = Keypoints(points)
            item["instances"] = instances
        if "sem_seg" not in item:
            item["sem_seg"] = torch.zeros(height, width, dtype=torch.long)
        result.append(item)
    return result


AVERAGES = ("loss_normalizer",)
"""Attributes in which `DenseDetector` keeps running averages as plain numbers; a state dict does not contain them."""


def averages(model: nn.Module) -> dict[str, float]:
    """Returns the running averages of RetinaNet and other dense detectors, {attribute's path: value}."""
    found = {}
    for prefix, module in walk(model):
        for name in AVERAGES:
            value = getattr(module, name, None)
            if isinstance(value, (int, float, torch.Tensor)):
                found[f"{prefix}.{name}".lstrip(".")] = float(value)
    return found


def set_averages(model: nn.Module, values: Mapping[str, float]) -> None:
    """Sets the running averages to values that `averages` returned."""
    for path, value in values.items():
        prefix, _, name = path.rpartition(".")
        if name in AVERAGES:
            setattr(model.get_submodule(prefix), name, value)


def _keypoints(model: nn.Module) -> int:
    counts = (getattr(module, "num_keypoints", None) for module in walk_modules(model))
    return next((n for n in counts if isinstance(n, int)), 17)
