"""Boundary IoU: IoU of pixels near contours only, which shows errors in fine structure (Cheng et al., CVPR 2021)."""

from __future__ import annotations

import cv2
import numpy as np


class BoundaryIoU:
    """Counts boundary pixels of label maps, class by class, over a data set.

    The boundary IoU of a class is the IoU of two bands. A band has the pixels of the class within a distance of the
    contour of the class, once in the truth and once in the prediction. As in the paper's code:

    - The distance is a share of the image's diagonal, at least one pixel.
    - A step along a row, a column or a diagonal has length one.
    - The image's border is a contour.

    Ignored pixels do not count. The border between a class and ignored pixels is not a contour.

    Args:
        classes: number of classes, K.
        ignore: label of ignored pixels.
        ratio: distance as a share of the diagonal. The paper uses 0.02 for COCO, 0.005 for Cityscapes' large images.
    """

    def __init__(self, classes: int, ignore: int, ratio: float):
        self.classes, self.ignore, self.ratio = classes, ignore, ratio
        self.counts = np.zeros((3, classes), np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds an image: truth and prediction are class indices (H, W); the truth may contain `ignore`."""
        void = truth == self.ignore
        distance = max(1, round(self.ratio * float(np.hypot(*truth.shape))))
        bands = [np.where(boundary(labels, void, distance), labels, self.classes) for labels in (truth, predicted)]
        both = np.where(bands[0] == bands[1], bands[0], self.classes)
        for count, band in zip(self.counts, (*bands, both), strict=True):
            count += np.bincount(band.ravel(), minlength=self.classes + 1)[: self.classes]

    def per_class(self) -> np.ndarray:
        """Boundary IoU of each class: (K,), in [0, 1]; NaN for classes that do not occur in the truth."""
        truth, predicted, both = self.counts
        return np.where(truth > 0, both / np.maximum(truth + predicted - both, 1), np.nan)


def boundary(labels: np.ndarray, void: np.ndarray, distance: int) -> np.ndarray:
    """Marks pixels within a distance of another class or of the image's outside; void pixels are never marked.

    Args:
        labels: class indices, (H, W); values at void pixels are ignored.
        void: (H, W) of bool, True for pixels without a class; these pixels do not count as another class.
        distance: distance in pixels, at least 1. Diagonal neighbours have distance 1 (the window is a square).
    """
    shifted = labels.astype(np.uint16) + 1  # 0 is outside the image; OpenCV's filters accept no larger integer type
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    lowest = cv2.erode(np.where(void, np.uint16(np.iinfo(np.uint16).max), shifted), window, **outside)
    highest = cv2.dilate(np.where(void, np.uint16(0), shifted), window, **outside)
    return ~void & ((lowest != shifted) | (highest != shifted))
