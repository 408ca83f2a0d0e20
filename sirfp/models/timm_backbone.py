"""Detectron2 backbones built from any timm network, selected by the config.

    MODEL:
      BACKBONE: {NAME: build_timm_backbone}
      TIMM: {NAME: tf_efficientnet_lite0, OUT_FEATURES: ["stride4", "stride16"], OUTPUT_STRIDE: 16}

Features are named by their stride. If several features have the same stride, the name means the deepest of them.
"stage3" means the network's feature map of index 3 (in a ResNet, the output of `layer3`); with dilation, several stages
can have the same stride.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ..errors import InputError
from .timm_weights import create_timm

T = TypeVar("T")


class TimmBackbone(Backbone):
    """A backbone that returns feature maps of a timm network.

    Args:
        name: one of `timm.list_models()`.
        out_features: names of features, e.g. "stride8" or "stage3"; layers after the last of them are not built.
        output_stride: the largest stride. 8 and 16 replace strides by dilation, in networks that support it.
        weights: see `timm_weights.create_timm`.
        norm: "" to keep the network's norms, "FrozenBN" or "SyncBN" to convert its batch norms.
        in_channels: number of channels of the images.
        options: further arguments of the network, or None.

    Raises:
        InputError: the network, a feature, the stride, the norm or the weights do not exist.
    """

    def __init__(
        self,
        name: str,
        out_features: list[str],
        *,
        output_stride: int = 32,
        weights: str = "",
        norm: str = "",
        in_channels: int = 3,
        options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        options = {**(options or {}), "features_only": True, "in_chans": in_channels}
        if output_stride != 32:
            options["output_stride"] = output_stride
        whole: Any = create_timm(name, **options)
        largest = max(whole.feature_info.reduction())
        if largest > output_stride != 32:  # some timm networks ignore the option silently
            raise InputError(f"timm network {name!r} ignores output_stride={output_stride}: its stride is {largest}")
        indices, stages = _features(whole)
        for feature in out_features:
            if feature not in indices and feature not in stages:
                raise InputError(
                    f"MODEL.TIMM.OUT_FEATURES: {name!r} at output stride {output_stride} has no {feature!r}; "
                    f"it has {', '.join([*indices, *stages])}"
                )
        indices |= stages
        self._out_features = sorted(set(out_features), key=lambda feature: (indices[feature], feature))
        selected = tuple(dict.fromkeys(indices[feature] for feature in self._out_features))
        self._places = [selected.index(indices[feature]) for feature in self._out_features]
        self.network = _with_norm(create_timm(name, weights, out_indices=selected, **options), norm)
        info = self.network.feature_info
        self._out_feature_strides = self._named(info.reduction())
        self._out_feature_channels = self._named(info.channels())
        self._channels_last = str(getattr(self.network, "output_fmt", "")).endswith("NHWC")

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Maps images (N, C, H, W) to feature maps, {"stride8": (N, C', H / 8, W / 8), ...}."""
        maps = self.network(x)
        if self._channels_last:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        named: dict[str, torch.Tensor] = {}
        for i, feature in enumerate(self._out_features):  # a plain loop, which TorchScript can compile
            named[feature] = maps[self._places[i]]
        return named

    def _named(self, values: Sequence[T]) -> dict[str, T]:
        """Returns {feature: value}, from a list with one value for each feature map of the network."""
        return {feature: values[place] for feature, place in zip(self._out_features, self._places, strict=True)}

    @property
    def size_divisibility(self) -> int:
        """The largest stride; Detectron2 pads the sides of images to multiples of it."""
        return max(self._out_feature_strides.values())


def _features(network: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Returns {"stride8": index of the deepest feature map with this stride, ...} and {"stage3": 3, ...}."""
    info = network.feature_info
    strides = {f"stride{stride}": i for i, stride in zip(info.out_indices, info.reduction(), strict=True)}
    return strides, {f"stage{i}": i for i in info.out_indices}


def _with_norm(network: Any, norm: str) -> Any:
    """Converts the batch norms of a timm network; see `TimmBackbone`."""
    if norm == "FrozenBN":
        return timm.layers.freeze_batch_norm_2d(network)
    if norm == "SyncBN":
        return timm.layers.convert_sync_batchnorm(network)
    if norm:
        raise InputError(f"MODEL.TIMM.NORM must be '', 'FrozenBN' or 'SyncBN', got {norm!r}")
    return network


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds the backbone that `MODEL.TIMM` describes."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.NAME,
        list(node.OUT_FEATURES),
        output_stride=node.OUTPUT_STRIDE,
        weights=node.WEIGHTS,
        norm=node.NORM,
        in_channels=input_shape.channels,
        options=node.OPTIONS,
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds the backbone with a feature pyramid, p2 to p6, for Faster, Mask and Cascade R-CNN.

    The pyramid reads `MODEL.FPN.IN_FEATURES`.
    """
    return _pyramid(cfg, build_timm_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds the backbone with a feature pyramid, p3 to p7, for RetinaNet and FCOS.

    The pyramid reads `MODEL.FPN.IN_FEATURES`; p6 and p7 are computed from the coarsest of these features.
    """
    bottom_up = build_timm_backbone(cfg, input_shape)
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = bottom_up.output_shape()[last].channels
    return _pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=last))


def _pyramid(cfg: CfgNode, bottom_up: Backbone, top: nn.Module) -> FPN:
    node = cfg.MODEL.FPN
    return FPN(bottom_up, node.IN_FEATURES, node.OUT_CHANNELS, norm=node.NORM, top_block=top, fuse_type=node.FUSE_TYPE)
