"""RoIAlign over a feature pyramid as one operator, `sirfp::pool_regions`, exported as ONNX's RoiAlign on each level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision.ops import roi_align


@torch.library.custom_op("sirfp::pool_regions", mutates_args=())
def pool_regions(
    features: Sequence[torch.Tensor],
    regions: torch.Tensor,
    levels: torch.Tensor,
    scales: Sequence[float],
    height: int,
    width: int,
    ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """Pools each region from one level of a feature pyramid by RoIAlign.

    Args:
        features: L maps (N, C, H, W), from fine to coarse.
        regions: (R, 5), index of the image and corners x0, y0, x1, y1 in pixels of the image.
        levels: (R), int64, index of the map for each region.
        scales: 1 / stride of each map.
        height: number of bins along y.
        width: number of bins along x.
        ratio: samples per bin along each axis; 0 for an adaptive number.
        aligned: True for pixel coordinates shifted by half a pixel (Detectron2's `ROIAlignV2`).

    Returns:
        (R, C, height, width).
    """
    pooled = features[0].new_zeros(len(regions), features[0].shape[1], height, width)
    for level, (maps, scale) in enumerate(zip(features, scales, strict=True)):
        here = (levels == level).nonzero()[:, 0]
        pooled[here] = roi_align(maps, regions[here].to(maps.dtype), (height, width), scale, ratio, aligned)
    return pooled


@pool_regions.register_fake
def _(features, regions, levels, scales, height, width, ratio, aligned):
    return features[0].new_empty(regions.shape[0], features[0].shape[1], height, width)


def translations() -> dict:
    """Maps the operator to its ONNX form, for `custom_translation_table` of `torch.onnx.export`."""
    from onnxscript import opset18

    op: Any = opset18  # typed Any: its annotations allow constants only, not the symbolic values of a translation

    def numbers(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def write(features, regions, levels, scales, height: int, width: int, ratio: int, aligned: bool):
        options = {
            "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel",
            "output_height": height,
            "output_width": width,
            "sampling_ratio": max(ratio, 0),
        }
        corners = op.Slice(regions, numbers(1), numbers(5), numbers(1))
        images = op.Cast(op.Squeeze(op.Slice(regions, numbers(0), numbers(1), numbers(1)), numbers(1)), to=7)
        if len(features) == 1:
            return op.RoiAlign(features[0], corners, images, spatial_scale=scales[0], **options)
        pooled, places = [], []
        for level, (maps, scale) in enumerate(zip(features, scales, strict=True)):
            here = op.Reshape(op.NonZero(op.Equal(levels, numbers(level))), numbers(-1))
            rows = op.Gather(corners, here), op.Gather(images, here)
            pooled.append(op.RoiAlign(maps, *rows, spatial_scale=scale, **options))
            places.append(here)
        order = op.Concat(*places, axis=0)
        count = op.Shape(order)
        ranks = op.Range(op.Constant(value_int=0), op.Squeeze(count), op.Constant(value_int=1))
        return op.Gather(op.Concat(*pooled, axis=0), op.ScatterElements(order, order, ranks))

    return {torch.ops.sirfp.pool_regions.default: write}
