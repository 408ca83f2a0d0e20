"""Size and preprocessing of test images according to a classification config."""

from __future__ import annotations

from functools import cache
from typing import Any

from detectron2.config import CfgNode

from sirfp.errors import InputError
from sirfp.models.timm_weights import create_timm, for_channels, network_channels


def preprocessing(cfg: CfgNode) -> dict[str, Any]:
    """Size (C, H, W), interpolation, mean, std and crop of test images: from the config, else from the network.

    Raises:
        InputError: INPUT.MEAN or INPUT.STD has neither one value nor one per channel.
    """
    import timm
    from timm.data import resolve_data_config

    node, channels = cfg.INPUT, image_channels(cfg)
    for key in ("MEAN", "STD"):
        if len(node[key]) not in (0, 1, channels):
            raise InputError(f"INPUT.{key} has {len(node[key])} values; give one, or {channels}, one per channel")
    given = {
        "in_chans": channels,
        "img_size": node.TEST_SIZE or node.SIZE or None,
        "crop_pct": node.CROP_PCT or None,
        "interpolation": node.INTERPOLATION or None,
        "mean": list(node.MEAN) or None,
        "std": list(node.STD) or None,
    }
    own = timm.get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    return for_channels(resolve_data_config(given, pretrained_cfg=own.to_dict() if own else {}), channels)


def image_channels(cfg: CfgNode) -> int:
    """Number of channels of images: INPUT.CHANNELS, else that of the network."""
    return cfg.INPUT.CHANNELS or _channels_of(cfg.MODEL.TIMM.NAME)


@cache
def _channels_of(name: str) -> int:
    """Number of channels of the images of a timm network as it is built by default."""
    import timm
    import torch

    own = timm.get_pretrained_cfg(name)
    size = (own.input_size if own else None) or (3, 224, 224)
    with torch.device("meta"):
        return network_channels(create_timm(name), size)


def image_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of the image for counting FLOPs: SIRFP.INPUT_SIZE, else the size of test images."""
    if all(cfg.SIRFP.INPUT_SIZE):
        return tuple(cfg.SIRFP.INPUT_SIZE)
    return tuple(preprocessing(cfg)["input_size"][1:])
