"""What a classification config says of its network and images, for the project that trains it and the command line."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode


def is_classifier(cfg: CfgNode) -> bool:
    """Whether a config has the classification project's keys, and so describes a plain timm network."""
    return "CLASSIFIER" in cfg.MODEL


def preprocessing(cfg: CfgNode) -> dict[str, Any]:
    """Size (C, H, W), interpolation, mean, std and crop of test images: the config's, else the network's own."""
    import timm
    from timm.data import resolve_data_config

    node = cfg.INPUT
    given = {
        "img_size": node.get("TEST_SIZE") or node.get("SIZE") or None,
        "crop_pct": node.get("CROP_PCT") or None,
        "interpolation": node.get("INTERPOLATION") or None,
        "mean": list(node.get("MEAN", ())) or None,
        "std": list(node.get("STD", ())) or None,
    }
    own = timm.get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    return resolve_data_config(given, pretrained_cfg=own.to_dict() if own else {})


def image_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of the image that FLOPs are counted on: SIRFP.INPUT_SIZE, else that of test images."""
    if all(cfg.SIRFP.INPUT_SIZE):
        return tuple(cfg.SIRFP.INPUT_SIZE)
    return tuple(preprocessing(cfg)["input_size"][1:])
