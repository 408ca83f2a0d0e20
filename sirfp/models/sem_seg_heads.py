"""Semantic segmentation heads of PSPNet, HRNet and SegFormer, with Detectron2's interface.

All heads read these keys of `MODEL.SEM_SEG_HEAD`: IN_FEATURES, CONVS_DIM, NORM, NUM_CLASSES, IGNORE_VALUE, LOSS_WEIGHT,
LOSS_TYPE and COMMON_STRIDE. COMMON_STRIDE must be the stride of the finest feature.
"""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn
from torch.nn import functional as F

DROPOUT = 0.1
"""Dropout rate of channels before the classifier, as in PSPNet's and SegFormer's published code."""
HARD_PIXELS = 0.2
"""Share of the pixels, those with the highest loss, that LOSS_TYPE hard_pixel_mining averages; as in Detectron2's
DeepLab."""


def convolution(in_channels: int, channels: int, norm: str, kernel: int = 1, activation=F.relu) -> Conv2d:
    """Builds a convolution with norm and activation, initialised as in Detectron2's heads."""
    layer = Conv2d(
        in_channels,
        channels,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(norm, channels),
        activation=activation,
    )
    weight_init.c2_msra_fill(layer)
    return layer


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Resizes a map bilinearly to the height and width of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class DenseHead(nn.Module):
    """Base class of the heads: the classifier, the loss and Detectron2's interface.

    Args:
        cfg: the whole config.
        input_shape: {feature: shape} of all features of the backbone.

    Raises:
        ValueError: COMMON_STRIDE is not the stride of the finest feature, or LOSS_TYPE is unknown.
    """

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]):
        super().__init__()
        node = cfg.MODEL.SEM_SEG_HEAD
        self.in_features = sorted(node.IN_FEATURES, key=lambda name: input_shape[name].stride)
        self.in_channels = [input_shape[name].channels for name in self.in_features]
        self.ignore_value, self.common_stride = node.IGNORE_VALUE, node.COMMON_STRIDE
        self.loss_weight = node.LOSS_WEIGHT
        finest = input_shape[self.in_features[0]].stride
        if self.common_stride != finest:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE must be {finest}, the stride of the finest of IN_FEATURES, "
                f"got {self.common_stride}"
            )
        kind = node.get("LOSS_TYPE", "cross_entropy")
        if kind == "cross_entropy":
            self.loss = nn.CrossEntropyLoss(ignore_index=self.ignore_value)
        elif kind == "hard_pixel_mining":
            from detectron2.projects.deeplab.loss import DeepLabCE

            self.loss = DeepLabCE(ignore_label=self.ignore_value, top_k_percent_pixels=HARD_PIXELS)
        else:
            raise ValueError(f"MODEL.SEM_SEG_HEAD.LOSS_TYPE must be cross_entropy or hard_pixel_mining, got {kind}")
        self.dropout = nn.Dropout2d(DROPOUT)
        channels = self.build(self.in_channels, node.CONVS_DIM, node.NORM)
        self.predictor = Conv2d(channels, node.NUM_CLASSES, kernel_size=1)
        nn.init.normal_(self.predictor.weight, 0, 0.01)
        nn.init.zeros_(self.predictor.bias)

    def build(self, in_channels: list[int], channels: int, norm: str) -> int:
        """Creates the layers of the head.

        Args:
            in_channels: channels of each feature, from fine to coarse.
            channels: CONVS_DIM.
            norm: name of the norm, "" for no norm.

        Returns:
            The number of input channels of the classifier.
        """
        raise NotImplementedError

    def layers(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Maps the features, from fine to coarse, to the classifier's input, at the stride of the finest feature."""
        raise NotImplementedError

    def forward(self, features: dict[str, torch.Tensor], targets: torch.Tensor | None = None):
        """Returns (None, losses) in training mode, else (logits, {}).

        The logits, (N, K, H, W), have the height and width of the images.
        """
        x = self.predictor(self.dropout(self.layers([features[name] for name in self.in_features])))
        x = F.interpolate(x, scale_factor=self.common_stride, mode="bilinear", align_corners=False)
        if self.training:
            return None, {"loss_sem_seg": self.loss(x, targets) * self.loss_weight}
        return x, {}


@SEM_SEG_HEADS_REGISTRY.register()
class PyramidPoolingHead(DenseHead):
    """Pyramid pooling of a single feature (Zhao et al., Pyramid Scene Parsing Network, CVPR 2017)."""

    BINS = (1, 2, 3, 6)

    def build(self, in_channels: list[int], channels: int, norm: str) -> int:
        if len(in_channels) != 1:
            raise ValueError(f"PyramidPoolingHead reads a single feature; IN_FEATURES names {len(in_channels)}")
        self.pools = nn.ModuleList(convolution(in_channels[0], channels, norm) for _ in self.BINS)
        self.fuse = convolution(in_channels[0] + len(self.BINS) * channels, channels, norm, kernel=3)
        return channels

    def layers(self, features: list[torch.Tensor]) -> torch.Tensor:
        (x,) = features
        pooled = [layer(F.adaptive_avg_pool2d(x, size)) for size, layer in zip(self.BINS, self.pools, strict=True)]
        return self.fuse(torch.cat([x, *(resize(one, x) for one in pooled)], dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class ConcatenationHead(DenseHead):
    """Concatenates all features at the finest size and fuses them by a 1 x 1 convolution (HRNetV2; Wang et al., 2019).

    The convolution has as many output channels as input channels; CONVS_DIM is not read.
    """

    def build(self, in_channels: list[int], channels: int, norm: str) -> int:
        self.fuse = convolution(sum(in_channels), sum(in_channels), norm)
        return sum(in_channels)

    def layers(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.fuse(torch.cat([resize(one, features[0]) for one in features], dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class AllMLPHead(DenseHead):
    """Projects, resizes, concatenates and fuses all features by 1 x 1 convolutions (SegFormer; Xie et al., 2021)."""

    def build(self, in_channels: list[int], channels: int, norm: str) -> int:
        self.projections = nn.ModuleList(convolution(n, channels, "", activation=None) for n in in_channels)
        self.fuse = convolution(len(in_channels) * channels, channels, norm)
        return channels

    def layers(self, features: list[torch.Tensor]) -> torch.Tensor:
        projected = [layer(one) for layer, one in zip(self.projections, features, strict=True)]
        return self.fuse(torch.cat([resize(one, features[0]) for one in projected], dim=1))
