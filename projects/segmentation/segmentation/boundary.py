"""Boundary IoU: IoU of pixels near contours only, which shows errors in fine structure (Cheng et al., CVPR 2021)."""

from __future__ import annotations

import cv2
import numpy as np


class BoundaryIoU:
    """Counts boundary pixels of label maps, class by class, over a data set.

    Boundary IoU of a class is the IoU of two bands: the pixels of the truth within a distance of its contour, and the
    pixels of the prediction within the same distance of its own contour. As in the paper's code, the distance is a
    share of the image's diagonal and at least one pixel; a step along a row, a column or a diagonal counts as one
    pixel; and the image's border is a contour. Ignored pixels do not count, and the border between a class and ignored
    pixels is not a contour.

    Args:
        classes: the number of classes, K.
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
        """Boundary IoU of each class in [0, 1], (K,); NaN for classes that do not occur in the truth."""
        truth, predicted, both = self.counts
        return np.where(truth > 0, both / np.maximum(truth + predicted - both, 1), np.nan)


def boundary(labels: np.ndarray, void: np.ndarray, distance: int) -> np.ndarray:
    """Marks pixels within a distance of another class or of the image's outside; void pixels are never marked.

    Args:
        labels: class indices, (H, W); values at void pixels are ignored.
        void: pixels of no class, (H, W) of bool; they do not count as another class.
        distance: in pixels, at least 1; a square window, so that diagonal neighbours are at distance 1.
    """
    shifted = labels.astype(np.uint16) + 1  # 0 is outside; OpenCV filters no larger integers
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    lowest = cv2.erode(np.where(void, np.uint16(np.iinfo(np.uint16).max), shifted), window, **outside)
    highest = cv2.dilate(np.where(void, np.uint16(0), shifted), window, **outside)
    return ~void & ((lowest != shifted) | (highest != shifted))
