"""Deep supervision: a small head on a feature inside the backbone, in training only (Zhao et al., PSPNet, 2017)."""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d, get_norm
from torch import nn
from torch.nn import functional as F


class AuxiliaryHead(nn.Module):
    """A fully convolutional head: 3 x 3 convolution, dropout, classifier.

    `sirfp.network.branches` excludes the head from saved files and from counts. The head's channels are not pruned; its
    input channels are cut together with the backbone's feature.

    Args:
        in_channels: channels of the feature.
        channels: channels of the convolution.
        classes: number of classes.
        norm: Detectron2's name of the normalisation; "" for no normalisation.
        dropout: probability of dropping a channel.
    """

    training_only = True

    def __init__(self, in_channels: int, channels: int, classes: int, norm: str, dropout: float = 0.1):
        super().__init__()
        self.conv = Conv2d(
            in_channels,
            channels,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, channels),
            activation=F.relu,
        )
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = nn.Conv2d(channels, classes, kernel_size=1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, feature: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Maps a feature (N, C, h, w) to logits (N, K, H, W), where `size` is (H, W)."""
        logits = self.predictor(self.dropout(self.conv(feature)))
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
