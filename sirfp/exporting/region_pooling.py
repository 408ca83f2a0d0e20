"""Pooling of regions from a feature pyramid as one operator, `sirfp::pool_regions`: ONNX's RoiAlign on each level."""

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
    """RoIAlign of each region on its level of a pyramid.

    Args:
        features: L maps (N, C, H, W), of falling size.
        regions: (R, 5), the number of the image and the corners x0, y0, x1, y1 in pixels of it.
        levels: (R), whole numbers, which of the maps.
        scales: positions of each map to a pixel.
        height: of the result.
        width: likewise.
        ratio: samples to a bin and side, 0 for as many as it has positions.
        aligned: whether pixels are at their centres (Detectron2's `ROIAlignV2`).

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
    """How the exporter writes the operator: for `custom_translation_table` of `torch.onnx.export`."""
    from onnxscript import opset18 as op

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
