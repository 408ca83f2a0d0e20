"""Evaluation with sliding windows, at several scales and on mirror images.

A wrapped network is called with the same `list[dict]` and returns class probabilities instead of logits. If there is
nothing to average (only scale 1, no mirror image, the image fits into the window), it returns the logits unchanged:
rounding in the softmax could change the order of nearly equal classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn import functional as F

from sirfp.errors import InputError


class SegmentorWithTTA(nn.Module):
    """Averages a segmentor's probabilities over windows, scales and mirror images.

    Args:
        model: a segmentor in evaluation mode, which resizes its logits to each input's "height" and "width".
        scales: factors of the image's sides.
        flip: whether to include the mirror image at each scale.
        window: (height, width) of the windows in pixels; (0, 0) for whole images.
        overlap: least overlap of neighbouring windows, as a share of a window, in [0, 1).

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        window: tuple[int, int] = (0, 0),
        overlap: float = 1 / 3,
    ):
        super().__init__()
        if not scales or any(scale <= 0 for scale in scales):
            raise InputError(f"TEST.AUG.SCALES must be positive factors, at least one; got {list(scales)}")
        if len(window) != 2 or any(side < 0 for side in window) or (not all(window) and any(window)):
            raise InputError(f"TEST.WINDOW must be a height and a width in pixels, or [0, 0]; got {list(window)}")
        if not 0 <= overlap < 1:
            raise InputError(f"TEST.OVERLAP must lie in [0, 1), got {overlap}")
        self.model, self.scales, self.flip = model, tuple(scales), flip
        self.window, self.overlap = tuple(window), overlap
        self.training = model.training  # Detectron2's evaluation reads it to restore the mode afterwards

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
        """Returns {"sem_seg": probabilities (K, height, width)} for each input, at its "height" and "width"."""
        return [self._predict(given) for given in batched_inputs]

    def _predict(self, given: dict[str, Any]) -> dict[str, torch.Tensor]:
        image = given["image"]
        if self._plain(image):
            return self.model([given])[0]
        size = given.get("height", image.shape[1]), given.get("width", image.shape[2])
        total = 0
        for scale in self.scales:
            scaled = self._scaled(image, scale)
            for mirrored in (False, True) if self.flip else (False,):
                one = self._whole(scaled.flip(-1) if mirrored else scaled, size)
                total = total + (one.flip(-1) if mirrored else one)
        return {"sem_seg": total / (len(self.scales) * (1 + self.flip))}

    def _plain(self, image: torch.Tensor) -> bool:
        """True if there is nothing to average."""
        return self.scales == (1.0,) and not self.flip and self._fits(image)

    def _fits(self, image: torch.Tensor) -> bool:
        """True if the image fits into one window."""
        return not any(self.window) or all(a <= b for a, b in zip(image.shape[1:], self.window, strict=True))

    @staticmethod
    def _scaled(image: torch.Tensor, scale: float) -> torch.Tensor:
        if scale == 1:
            return image
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        return F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]

    def _whole(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Probabilities of one image at a size, averaged over the windows that cover it."""
        height, width = image.shape[1:]
        if self._fits(image):
            return self._softmax(image, size)
        total: Any = 0
        count = torch.zeros(height, width)
        for rows, columns in windows((height, width), self.window, self.overlap):
            part = image[:, rows, columns]
            found = self._softmax(part, tuple(part.shape[1:]))
            if not isinstance(total, torch.Tensor):
                total, count = found.new_zeros(len(found), height, width), count.to(found.device)
            total[:, rows, columns] += found
            count[rows, columns] += 1
        total = total / count
        if (height, width) == tuple(size):
            return total
        return F.interpolate(total[None], size=size, mode="bilinear", align_corners=False)[0]

    def _softmax(self, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        given = {"image": image, "height": size[0], "width": size[1]}
        return self.model([given])[0]["sem_seg"].float().softmax(0)


def windows(image: tuple[int, int], window: tuple[int, int], overlap: float) -> Iterator[tuple[slice, slice]]:
    """Yields (rows, columns) of evenly spaced windows that cover an image.

    All windows have the size `window`, or the image's size along a side where the image is smaller.

    Args:
        image: (height, width).
        window: (height, width).
        overlap: least overlap of neighbouring windows, as a share of a window, in [0, 1).
    """
    sides = [_starts(whole, part, overlap) for whole, part in zip(image, window, strict=True)]
    for top in sides[0]:
        for left in sides[1]:
            yield slice(top, min(top + window[0], image[0])), slice(left, min(left + window[1], image[1]))


def _starts(whole: int, part: int, overlap: float) -> list[int]:
    if whole <= part:
        return [0]
    step = max(1, int(part * (1 - overlap)))
    count = -(-(whole - part) // step) + 1
    return [round(i * (whole - part) / (count - 1)) for i in range(count)]


def with_tta(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wraps the model in `SegmentorWithTTA` if `TEST` requests scales, mirror images or windows."""
    node, aug = cfg.TEST, cfg.TEST.AUG
    if not aug.ENABLED and not any(node.WINDOW):
        return model
    scales, flip = (aug.SCALES, aug.FLIP) if aug.ENABLED else ((1.0,), False)
    return SegmentorWithTTA(model, scales, flip, tuple(node.WINDOW), node.OVERLAP)
