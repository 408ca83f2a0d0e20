"""Deformable convolutions for a Detectron2 without its compiled operators, on torchvision's operator.

Detectron2's own layers raise on construction where `detectron2._C` cannot be imported, though torchvision has the
operator for processors and GPUs. The layer here has their constructor, weights and calls.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d


class DeformableConv(nn.Module):
    """Deformable convolution, modulated if a mask is given (Dai et al., ICCV 2017; Zhu et al., CVPR 2019).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as of `nn.Conv2d`.
        deformable_groups: groups of input channels that have offsets of their own.
        norm: a module for the result, or None.
        activation: a callable for what the norm returns, or None.
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
        """Convolves (N, C, H, W) at positions moved by `offset`, (N, 2 * groups * k * k, H', W'), in pixels.

        Args:
            x: features.
            offset: vertical and horizontal shift of each tap of the kernel.
            mask: a factor for each tap, (N, groups * k * k, H', W'), or None.
        """
        sizes = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        x = deform_conv2d(x, offset, self.weight, self.bias, mask=mask, **sizes)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class ModulatedDeformableConv(DeformableConv):
    """With a bias unless told otherwise, as in Detectron2."""

    def __init__(self, *args, bias=True, **kwargs):
        super().__init__(*args, bias=bias, **kwargs)


def provide_deformable() -> None:
    """Gives Detectron2 these layers where it lacks its own; does nothing where it has them."""
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        from detectron2 import layers
        from detectron2.modeling.backbone import resnet

        for module in (layers, layers.deform_conv, resnet):
            module.DeformConv, module.ModulatedDeformConv = DeformableConv, ModulatedDeformableConv
