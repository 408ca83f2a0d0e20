"""The training losses: timm's on hard or mixed labels."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn


class Objective:
    """Computes the loss of a batch.

    Args:
        cfg: the whole config.
    """

    def __init__(self, cfg: CfgNode):
        node = cfg.MODEL.CLASSIFIER
        self.hard: nn.Module = LabelSmoothingCrossEntropy(node.LABEL_SMOOTHING)
        self.soft: nn.Module = SoftTargetCrossEntropy()
        if node.LOSS == "bce":
            self.hard = self.soft = BinaryCrossEntropy(node.LABEL_SMOOTHING, smooth_dense=False)

    def __call__(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Runs the model.

        Args:
            model: the network in training mode.
            images: (N, C, H, W).
            labels: classes (N,), or shares of classes (N, classes).

        Returns:
            {"loss": ...}.
        """
        return {"loss": (self.hard if labels.dim() == 1 else self.soft)(model(images), labels)}
