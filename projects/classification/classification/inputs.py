"""Size and preprocessing of test images according to a classification config."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode


def preprocessing(cfg: CfgNode) -> dict[str, Any]:
    """Size (C, H, W), interpolation, mean, std and crop of test images: from the config, else from the network."""
    import timm
    from timm.data import resolve_data_config

    node = cfg.INPUT
    given = {
        "img_size": node.TEST_SIZE or node.SIZE or None,
        "crop_pct": node.CROP_PCT or None,
        "interpolation": node.INTERPOLATION or None,
        "mean": list(node.MEAN) or None,
        "std": list(node.STD) or None,
    }
    own = timm.get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    return resolve_data_config(given, pretrained_cfg=own.to_dict() if own else {})


def image_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of the image for counting FLOPs: SIRFP.INPUT_SIZE, else the size of test images."""
    if all(cfg.SIRFP.INPUT_SIZE):
        return tuple(cfg.SIRFP.INPUT_SIZE)
    return tuple(preprocessing(cfg)["input_size"][1:])
