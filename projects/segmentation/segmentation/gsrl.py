"""GSRL: cross-entropy weighted by what is rare, what lies beside it and what is hard.

From DCFP, 2024; docs/method.md, section 5.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from sirfp.config.checks import between
from sirfp.errors import InputError

NO_CLASS = -1
"""Stands for the sampled class of an image that was sampled for none."""


class GSRL(nn.Module):
    """Geometric-Semantic Re-balanced Loss.

    A pixel weighs as much as its class is rare in the crop, or a class near it; times `1 + gamma` at most where the
    network is unsure. The loss is each image's weighted mean of the cross-entropy, averaged over the images. It runs
    in float32 whatever autocast says, without loops over images or waiting for the device.

    Args:
        ignore: label of pixels that neither count nor weigh; outside 0..K-1.
        beta: of the effective number of pixels, in (0, 1).
        window: side of the square, in pixels, in which a rare class lifts its neighbours; odd.
        gamma: weight of unsureness, at least 0.

    Raises:
        InputError: a value is out of its range.
    """

    def __init__(self, ignore: int, beta: float = 0.9999, window: int = 9, gamma: float = 9.0):
        super().__init__()
        between(beta, "SOLVER.GSRL.BETA", 0, 1, "()")
        if window < 1 or window % 2 == 0:
            raise InputError(f"SOLVER.GSRL.WINDOW must be odd and at least 1, got {window}")
        if gamma < 0:
            raise InputError(f"SOLVER.GSRL.GAMMA must be at least 0, got {gamma}")
        self.ignore, self.beta, self.window, self.gamma = ignore, beta, window, gamma

    def class_weights(self, labels: torch.Tensor, classes: int, sampled: torch.Tensor | None = None) -> torch.Tensor:
        """Weight of each pixel by its class: `(1 - beta^n_ref) / (1 - beta^n_c)`, at most 1; 0 where ignored.

        `n_c` counts the pixels of class c in the image's crop. `n_ref` is that of the class which the image was sampled
        for; without one, or where the crop missed it, that of the rarest class in the crop, whose weight thus is 1.

        Args:
            labels: (N, H, W), integers below `classes`, or `ignore`.
            classes: how many there are.
            sampled: (N,), the class that each image was sampled for or `NO_CLASS`.

        Returns:
            (N, H, W) of float32.
        """
        flat = labels.flatten(1)
        place = torch.where(flat == self.ignore, classes, flat)  # ignored pixels have a place of their own
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
        """Weight of each pixel, geometric times semantic: (N, H, W) of float32, without gradient; 0 where ignored.

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
        """The loss, of float32; an image without a labelled pixel adds nothing.

        Args:
            logits: (N, K, H, W).
            labels: (N, H, W).
            weights: (N, H, W), of `weights`; an auxiliary head is given those of the main one.
        """
        with torch.autocast(logits.device.type, enabled=False):
            losses = F.cross_entropy(logits.float(), labels, ignore_index=self.ignore, reduction="none")
            total = weights.sum((1, 2))
            return ((weights * losses).sum((1, 2)) / torch.where(total > 0, total, 1)).mean()

    def _effective(self, count: torch.Tensor) -> torch.Tensor:
        """`1 - beta^n`, exact for small n too."""
        return -torch.expm1(count * math.log(self.beta))
