"""Deformable convolutions with torchvision's operator, for installations of Detectron2 without compiled operators.

Detectron2's own layers raise an error on construction if `detectron2._C` cannot be imported. These layers have the same
arguments and the same weights, and also run on CPUs.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d


class DeformableConv(nn.Module):
    """A deformable convolution, modulated if a mask is given (Dai et al., ICCV 2017; Zhu et al., CVPR 2019).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: see `nn.Conv2d`.
        deformable_groups: number of groups of input channels with separate offsets.
        norm: module that is applied to the result, or None.
        activation: function that is applied after the norm, or None.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, deformable_groups=1,
        bias=False, norm=None, activation=None,
    ):  # fmt: skip
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.deformable_groups = deformable_groups
        self.norm, self.activation = norm, activation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Convolves features at shifted positions.

        Args:
            x: features, (N, C, H, W).
            offset: vertical and horizontal shift of each kernel position in pixels, (N, 2 * groups * k * k, H', W').
            mask: factor of each kernel position, (N, groups * k * k, H', W'), or None.

        Returns:
            (N, C', H', W').
        """
        sizes = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        x = deform_conv2d(x, offset, self.weight, self.bias, mask=mask, **sizes)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class ModulatedDeformableConv(DeformableConv):
    """A deformable convolution that has a bias by default, like Detectron2's modulated layer."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, deformable_groups=1,
        bias=True, norm=None, activation=None,
    ):  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deformable_groups, bias, norm,
            activation,
        )  # fmt: skip


def provide_deformable() -> None:
    """Replaces Detectron2's deformable layers by these layers if Detectron2's compiled operators are missing."""
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        from detectron2 import layers
        from detectron2.modeling.backbone import resnet

        for module in (layers, layers.deform_conv, resnet):
            module.DeformConv, module.ModulatedDeformConv = DeformableConv, ModulatedDeformableConv
