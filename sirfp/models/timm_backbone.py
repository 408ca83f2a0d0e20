"""Any timm network as a Detectron2 backbone, by the config alone.

    MODEL:
      BACKBONE: {NAME: build_timm_backbone}
      TIMM: {NAME: tf_efficientnet_lite0, OUT_FEATURES: ["stride4", "stride16"], OUTPUT_STRIDE: 16}

Features are named by their stride; of several of one stride, the deepest counts. Where dilation makes strides alike,
"stage3" names the network's feature map of index 3 (of a ResNet, what its `layer3` gives).
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
    """A timm network's feature maps.

    Args:
        name: one of `timm.list_models()`.
        out_features: strides as "stride8", or stages as "stage3"; the network ends after the last of them.
        output_stride: the largest stride; 8 and 16 trade strides for dilation, where the network can.
        weights: see `weights.create_timm`.
        norm: "" for the network's own, "FrozenBN" or "SyncBN" to convert its batch norms.
        in_channels: of the images.
        options: arguments of the network's own.

    Raises:
        InputError: there is no such network, feature, stride or norm, or no such weights.
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
        whole = create_timm(name, **options)
        largest = max(whole.feature_info.reduction())
        if largest > output_stride != 32:  # not every network of timm knows the option, or says that it does not
            raise InputError(f"timm network {name!r} has no output_stride={output_stride}: its strides go to {largest}")
        indices, stages = _features(whole)
        for feature in out_features:
            if feature not in indices and feature not in stages:
                raise InputError(
                    f"MODEL.TIMM.OUT_FEATURES: {name!r} at output stride {output_stride} has no {feature!r}; "
                    f"it has {', '.join([*indices, *stages])}"
                )
        indices |= stages
        self._out_features = sorted(set(out_features), key=lambda feature: (indices[feature], feature))
        wanted = tuple(dict.fromkeys(indices[feature] for feature in self._out_features))
        self._places = [wanted.index(indices[feature]) for feature in self._out_features]
        self.network = _with_norm(create_timm(name, weights, out_indices=wanted, **options), norm)
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
        for i, feature in enumerate(self._out_features):  # in words that TorchScript knows
            named[feature] = maps[self._places[i]]
        return named

    def _named(self, values: Sequence[T]) -> dict[str, T]:
        return {feature: values[place] for feature, place in zip(self._out_features, self._places, strict=True)}

    @property
    def size_divisibility(self) -> int:
        """Image sides are padded to a multiple of the largest stride."""
        return max(self._out_feature_strides.values())


def _features(network: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
    """Index of the deepest feature of each stride, and of each stage."""
    info = network.feature_info
    strides = {f"stride{stride}": i for i, stride in zip(info.out_indices, info.reduction(), strict=True)}
    return strides, {f"stage{i}": i for i in info.out_indices}


def _with_norm(network: nn.Module, norm: str) -> nn.Module:
    if norm == "FrozenBN":
        return timm.layers.freeze_batch_norm_2d(network)
    if norm == "SyncBN":
        return timm.layers.convert_sync_batchnorm(network)
    if norm:
        raise InputError(f"MODEL.TIMM.NORM must be '', 'FrozenBN' or 'SyncBN', got {norm!r}")
    return network


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network that `MODEL.TIMM` describes."""
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
    """The same with a feature pyramid on `MODEL.FPN.IN_FEATURES`: p2..p6, for Faster R-CNN and its kin."""
    return _pyramid(cfg, build_timm_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The same with a feature pyramid and two levels on top: p3..p7, for RetinaNet and FCOS."""
    bottom_up = build_timm_backbone(cfg, input_shape)
    last = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = bottom_up.output_shape()[last].channels
    return _pyramid(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=last))


def _pyramid(cfg: CfgNode, bottom_up: Backbone, top: nn.Module) -> FPN:
    node = cfg.MODEL.FPN
    return FPN(bottom_up, node.IN_FEATURES, node.OUT_CHANNELS, norm=node.NORM, top_block=top, fuse_type=node.FUSE_TYPE)
