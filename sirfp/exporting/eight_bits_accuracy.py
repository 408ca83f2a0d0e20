"""Compares the results of an int8 file with those of the file with floats, on real images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou

from .agreement import Session

CERTAIN = 0.5
"""Least score of the detections that are compared: the many below it are mostly background."""
SAME_OBJECT = 0.5
"""Least intersection over union of two detections of one object."""


@dataclass
class Accuracy:
    """How far the results of an int8 file are those of the file with floats.

    Attributes:
        images: number of images compared.
        same_class: number of images that get the same class; None unless the model is a classifier.
        labelled: number of images whose true class is known.
        right: numbers of labelled images that the file with floats and the int8 file classify correctly.
        pixels: number of pixels compared; None unless the model is a segmentor.
        same_pixels: number of pixels that get the same class.
        detections: numbers of detections with a score of at least `CERTAIN`, of the file with floats and of the int8
            file; None unless the model is a detector.
        paired: number of those of floats that int8 finds too, with any score.
    """

    images: int = 0
    same_class: int | None = None
    labelled: int = 0
    right: tuple[int, int] = (0, 0)
    pixels: int | None = None
    same_pixels: int = 0
    detections: tuple[int, int] | None = None
    paired: int = 0

    def add(self, floats: dict[str, Any], integers: dict[str, Any], labels: torch.Tensor | None = None) -> None:
        """Adds the outputs of both files for some images.

        Args:
            floats, integers: {output: tensor}, each with the images first.
            labels: (N,), true classes of a classifier's images; None if they are not known.
        """
        if "boxes" in floats:
            self._add_detections(floats, integers)
        elif "classes" in floats:
            self.pixels = (self.pixels or 0) + floats["classes"].numel()
            self.same_pixels += int((floats["classes"] == integers["classes"]).sum())
        else:
            ours, theirs = (side["logits"].argmax(1) for side in (floats, integers))
            self.same_class = (self.same_class or 0) + int((ours == theirs).sum())
            if labels is not None:
                self.labelled += len(labels)
                self.right = (
                    self.right[0] + int((ours == labels).sum()),
                    self.right[1] + int((theirs == labels).sum()),
                )
        self.images += len(next(iter(floats.values())))

    def _add_detections(self, floats: dict[str, Any], integers: dict[str, Any]) -> None:
        before = self.detections or (0, 0)
        kept = [(side["scores"] >= CERTAIN) & (side["classes"] >= 0) for side in (floats, integers)]
        self.detections = (before[0] + int(kept[0].sum()), before[1] + int(kept[1].sum()))
        for i, chosen in enumerate(kept[0]):
            count = int(integers["count"][i])
            overlaps = box_iou(floats["boxes"][i][chosen], integers["boxes"][i][:count])
            other = floats["classes"][i][chosen][:, None] != integers["classes"][i][None, :count]
            overlaps[other] = 0
            for row in range(len(overlaps) if count else 0):
                overlap, j = overlaps[row].max(0)
                if overlap >= SAME_OBJECT:
                    self.paired += 1
                    overlaps[:, j] = 0


def compare_files(
    path: Path, integer_path: Path, batches: Iterable[tuple[torch.Tensor, torch.Tensor | None]]
) -> Accuracy:
    """Runs a file with floats and its int8 file in onnxruntime on the same images.

    Args:
        path: the file with floats.
        integer_path: the int8 file.
        batches: pairs of images (N, C, H, W), values 0 to 255, and their classes (N,) or None.
    """
    found = Accuracy()
    sessions = [Session(path), Session(integer_path)]
    for images, labels in batches:
        floats, integers = (dict(zip(s.names, s(images), strict=True)) for s in sessions)
        found.add(floats, integers, labels)
    return found
