"""GSRL: cross-entropy with larger weights for rare classes, for pixels near them and for uncertain pixels.

From DCFP, 2024; docs/method.md, section 5.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from sirfp.criteria.options import Within
from sirfp.errors import InputError

NO_CLASS = -1
"""Value of `sampled` for an image that was not drawn for a class."""


class GSRL(nn.Module):
    """Geometric-Semantic Re-balanced Loss.

    A pixel has a large weight if its class, or a class near the pixel, is rare in the crop. The weight is multiplied by
    up to `1 + gamma` if the network is uncertain about the pixel. The loss of an image is the weighted mean of the
    cross-entropy; the result is the mean over images. It is computed in float32, also under autocast, without loops
    over images and without synchronising with the device.

    Args:
        ignore: label of ignored pixels, which have no loss and no weight; outside 0..K-1.
        beta: parameter of the effective number of pixels, in (0, 1).
        window: side of the square, in pixels, in which a rare class raises the weight of its neighbours; odd.
        gamma: weight of the network's uncertainty, at least 0.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(self, ignore: int, beta: float = 0.9999, window: int = 9, gamma: float = 9.0):
        super().__init__()
        Within(0, 1, "()").check(beta, "SOLVER.GSRL.BETA")
        if window < 1 or window % 2 == 0:
            raise InputError(f"SOLVER.GSRL.WINDOW must be odd and at least 1, got {window}")
        if gamma < 0:
            raise InputError(f"SOLVER.GSRL.GAMMA must be at least 0, got {gamma}")
        self.ignore, self.beta, self.window, self.gamma = ignore, beta, window, gamma

    def class_weights(self, labels: torch.Tensor, classes: int, sampled: torch.Tensor | None = None) -> torch.Tensor:
        """Weight of each pixel by its class: `(1 - beta^n_ref) / (1 - beta^n_c)`, at most 1; 0 if ignored.

        `n_c` is the number of pixels of class c in the image's crop. `n_ref` is this number for the class for which the
        image was drawn. If the image was not drawn for a class, or if the crop does not contain the class, `n_ref` is
        the number for the rarest class in the crop; the weight of the rarest class is then 1.

        Args:
            labels: (N, H, W), integers below `classes`, or `ignore`.
            classes: number of classes, K.
            sampled: (N,), the class for which each image was drawn, or `NO_CLASS`.

        Returns:
            (N, H, W) of float32.
        """
        flat = labels.flatten(1)
        place = torch.where(flat == self.ignore, classes, flat)  # ignored pixels get index K
        ones = torch.ones_like(place, dtype=torch.float32)
        counts = torch.zeros(len(flat), classes + 1, device=labels.device).scatter_add_(1, place, ones)[:, :classes]
        reference = torch.where(counts > 0, counts, math.inf).amin(1)
        if sampled is not None:
            there = counts.gather(1, sampled.clamp(min=0)[:, None])[:, 0]
            reference = torch.where((sampled != NO_CLASS) & (there > 0), there, reference)
        share = self._effective(reference)[:, None] / self._effective(counts.clamp(min=1))
        weights = torch.where(counts > 0, share.clamp(max=1), 0)
        return F.pad(weights, (0, 1)).gather(1, place).view(labels.shape)

    def weights(self, logits: torch.Tensor, labels: torch.Tensor, sampled: torch.Tensor | None = None) -> torch.Tensor:
        """Weight of each pixel, geometric x semantic: (N, H, W) of float32, without gradient; 0 at ignored pixels.

        Args:
            logits: (N, K, H, W), of any floating-point type.
            labels: (N, H, W).
            sampled: see `class_weights`.
        """
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            rare = self.class_weights(labels, logits.shape[1], sampled)
            near = F.max_pool2d(rare[:, None], self.window, stride=1, padding=self.window // 2)[:, 0]
            first, *second = logits.float().softmax(1).topk(min(2, logits.shape[1]), dim=1).values.unbind(1)
            unsure = 1 - (first - second[0] if second else first)
            return torch.where(labels == self.ignore, 0, near * (1 + self.gamma * unsure))

    def forward(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The loss in float32; an image without labelled pixels adds 0.

        Args:
            logits: (N, K, H, W).
            labels: (N, H, W).
            weights: (N, H, W), the output of `weights`; for an auxiliary head, the weights of the main head.
        """
        with torch.autocast(logits.device.type, enabled=False):
            losses = F.cross_entropy(logits.float(), labels, ignore_index=self.ignore, reduction="none")
            total = weights.sum((1, 2))
            return ((weights * losses).sum((1, 2)) / torch.where(total > 0, total, 1)).mean()

    def _effective(self, count: torch.Tensor) -> torch.Tensor:
        """`1 - beta^n`, computed accurately also for small n."""
        return -torch.expm1(count * math.log(self.beta))
