"""Boundary IoU: IoU of what lies near contours alone, where fine structure shows (Cheng et al., CVPR 2021)."""

from __future__ import annotations

import cv2
import numpy as np


class BoundaryIoU:
    """Counts boundary pixels of label maps, class by class, over a data set.

    Boundary IoU of a class is that of two bands: the pixels of the truth within a distance of its contour, and those of
    the prediction within the same distance of its own. As in the paper's code the distance is a share of the image's
    diagonal, at least one pixel, measured along rows, columns and diagonals alike, and the image's border is a contour.
    Ignored pixels count nowhere, and where a class meets them is no contour.

    Args:
        classes: K.
        ignore: the label of pixels that do not count.
        ratio: the distance as a share of the diagonal: 0.02 on COCO in the paper, 0.005 on Cityscapes' large images.
    """

    def __init__(self, classes: int, ignore: int, ratio: float):
        self.classes, self.ignore, self.ratio = classes, ignore, ratio
        self.counts = np.zeros((3, classes), np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Counts an image: truth and prediction (H, W) of class indices; the truth may hold `ignore`."""
        void = truth == self.ignore
        distance = max(1, round(self.ratio * float(np.hypot(*truth.shape))))
        bands = [np.where(boundary(labels, void, distance), labels, self.classes) for labels in (truth, predicted)]
        both = np.where(bands[0] == bands[1], bands[0], self.classes)
        for count, band in zip(self.counts, (*bands, both), strict=True):
            count += np.bincount(band.ravel(), minlength=self.classes + 1)[: self.classes]

    def per_class(self) -> np.ndarray:
        """Boundary IoU of each class in [0, 1], (K,); NaN of classes that the truth does not hold."""
        truth, predicted, both = self.counts
        return np.where(truth > 0, both / np.maximum(truth + predicted - both, 1), np.nan)


def boundary(labels: np.ndarray, void: np.ndarray, distance: int) -> np.ndarray:
    """Which pixels lie within a distance of another class or of the image's outside; none of void does.

    Args:
        labels: class indices, (H, W); those of void pixels mean nothing.
        void: pixels of no class, (H, W) of bool; they are nobody's other class.
        distance: in pixels, at least 1; a square window, so that diagonal neighbours are at distance 1.
    """
    shifted = labels.astype(np.uint16) + 1  # 0 is outside; OpenCV filters no larger integers
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    lowest = cv2.erode(np.where(void, np.uint16(np.iinfo(np.uint16).max), shifted), window, **outside)
    highest = cv2.dilate(np.where(void, np.uint16(0), shifted), window, **outside)
    return ~void & ((lowest != shifted) | (highest != shifted))
