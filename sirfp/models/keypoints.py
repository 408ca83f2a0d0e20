"""Lets Detectron2's keypoint heads take heat maps of any memory format."""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch


def provide_contiguous_heat_maps() -> None:
    """Lets loss and inference of Detectron2's keypoint heads take heat maps that are stored channels-last.

    Both call `view` on the maps (R, K, S, S), which fails if the network is stored channels-last
    (`sirfp.network.channels_last`).
    """
    from detectron2.modeling.roi_heads import keypoint_head

    for name in ("keypoint_rcnn_loss", "keypoint_rcnn_inference"):
        function = getattr(keypoint_head, name)
        if not hasattr(function, "__wrapped__"):
            setattr(keypoint_head, name, _contiguous(function))


def _contiguous(function: Any) -> Any:
    @wraps(function)
    def called(maps: torch.Tensor, *given: Any, **named: Any) -> Any:
        return function(maps.contiguous(), *given, **named)

    return called
