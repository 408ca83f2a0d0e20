"""The network of a classification config for the commands `sirfp report`, `prune`, `verify` and `export`."""

from __future__ import annotations

from detectron2.config import CfgNode

from sirfp.sources.source import Source, from_timm, register_source

from .inputs import image_size, preprocessing


@register_source("classification")
def build_source(cfg: CfgNode, weights: str, size: tuple[int, int] | None) -> Source:
    """Builds the plain timm network.

    Args:
        cfg: the whole config.
        weights: a file; "" for MODEL.TIMM.WEIGHTS.
        size: (height, width) of the inputs in pixels; None for the config's size.

    Raises:
        InputError: there is no such network, or the weights do not fit the network.
    """
    return from_timm(
        cfg.MODEL.TIMM.NAME,
        weights=weights or cfg.MODEL.TIMM.WEIGHTS,
        size=size or image_size(cfg),
        num_classes=cfg.MODEL.CLASSIFIER.NUM_CLASSES,
        channels=cfg.INPUT.CHANNELS,
        preprocessing=preprocessing(cfg),
    )
