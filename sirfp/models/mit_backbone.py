"""Detectron2 backbones of SegFormer's Mix Transformers (Xie et al., NeurIPS 2021) from segmentation-models-pytorch.

MODEL:
  BACKBONE: {NAME: build_mit_backbone}
  MIT: {NAME: mit_b2, WEIGHTS: imagenet}
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from ..checkpoint.dense import fill, read_weights
from ..errors import InputError, near

PACKAGE = "segmentation-models-pytorch"
NAMES = tuple(f"mit_b{size}" for size in range(6))
IMAGENET = "imagenet"
"""Value of MODEL.MIT.WEIGHTS that selects the library's own weights."""
STRIDES = (4, 8, 16, 32)
CLASSIFIER = ("head.weight", "head.bias")
"""Tensors of the ImageNet classifier in files of weights; a backbone has no classifier."""


class MiTBackbone(Backbone):
    """A Mix Transformer with four feature maps, "stride4", "stride8", "stride16" and "stride32".

    Args:
        name: one of `NAMES`.
        weights: "" for random weights, "imagenet" to download the library's weights, or a local file.

    Raises:
        InputError: the network does not exist, the library is not installed, or the weights cannot be loaded.
    """

    def __init__(self, name: str, weights: str = ""):
        super().__init__()
        self.network = _encoder(name, weights if weights == IMAGENET else None)
        if weights not in ("", IMAGENET):
            state = {f"network.{key}": value for key, value in read_weights(weights).items() if key not in CLASSIFIER}
            fill(self, state, weights)
        self._out_features = [f"stride{stride}" for stride in STRIDES]
        self._out_feature_strides = dict(zip(self._out_features, STRIDES, strict=True))
        self._out_feature_channels = dict(zip(self._out_features, self.network.out_channels[2:], strict=True))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps images (N, 3, H, W) to feature maps, {"stride4": (N, C, H / 4, W / 4), ...}."""
        return dict(
            zip(self._out_features, self.network(x)[2:], strict=True)
        )  # the first two are the image and an empty map

    @property
    def size_divisibility(self) -> int:
        """The largest stride; Detectron2 pads the sides of images to multiples of it."""
        return STRIDES[-1]


def _encoder(name: str, weights: str | None) -> Any:
    """Builds the library's encoder, a module with `out_channels`; `weights` is "imagenet" or None."""
    if name not in NAMES:
        raise InputError(f"MODEL.MIT.NAME must be one of {', '.join(NAMES)}, got {name!r}{near(name, NAMES)}")
    try:
        from segmentation_models_pytorch.encoders import get_encoder
    except ModuleNotFoundError as error:
        raise InputError(f"the backbone build_mit_backbone needs a package; run: pip install {PACKAGE}") from error
    try:
        return get_encoder(name, weights=weights)
    except OSError as error:  # the base class of a download's errors
        reason = f"the weights of {name!r} cannot be downloaded ({type(error).__name__})"
        raise InputError(f"{reason}; set MODEL.MIT.WEIGHTS to a local file") from error


@BACKBONE_REGISTRY.register()
def build_mit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds the backbone that `MODEL.MIT` describes."""
    return MiTBackbone(cfg.MODEL.MIT.NAME, cfg.MODEL.MIT.WEIGHTS)
