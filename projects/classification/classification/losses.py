"""The training losses: timm's on hard or mixed labels, and distillation from the dense network."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from sirfp.checkpoint import read_safetensors, restore
from sirfp.checkpoint.dense import fill, read_weights
from sirfp.network.forward import inference
from sirfp.training.step import use_channels_last

from .network import build_network


class Objective:
    """Computes the losses of a batch.

    Args:
        cfg: the whole config.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg, node = cfg, cfg.MODEL.CLASSIFIER
        self.hard = LabelSmoothingCrossEntropy(node.LABEL_SMOOTHING)
        self.soft = SoftTargetCrossEntropy()
        if node.LOSS == "bce":
            self.hard = self.soft = BinaryCrossEntropy(node.LABEL_SMOOTHING, smooth_dense=False)
        self._teacher: nn.Module | None = None

    def __call__(
        self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, pruned: bool
    ) -> dict[str, torch.Tensor]:
        """Runs the model.

        Args:
            model: the network in training mode.
            images: (N, C, H, W).
            labels: classes (N,), or shares of classes (N, classes).
            pruned: whether the network has been pruned already.

        Returns:
            {"loss": ...}, with a teacher {"loss": ..., "loss_teacher": ...}; their sum is minimised.
        """
        logits = model(images)
        loss = (self.hard if labels.dim() == 1 else self.soft)(logits, labels)
        node = self.cfg.MODEL.TEACHER
        if not (node.WEIGHT and (pruned or node.WEIGHTS)):
            return {"loss": loss}
        teacher = self.teacher()
        with inference(teacher):
            wanted = teacher(images)
        t = node.TEMPERATURE
        likeness = F.kl_div(
            F.log_softmax(logits.float() / t, 1), F.log_softmax(wanted.float() / t, 1), log_target=True,
            reduction="batchmean",
        )  # fmt: skip
        return {"loss": (1 - node.WEIGHT) * loss, "loss_teacher": node.WEIGHT * t * t * likeness}

    def teacher(self) -> nn.Module:
        """The dense network; its file is read at the first call."""
        if self._teacher is None:
            file = self.cfg.MODEL.TEACHER.WEIGHTS or str(Path(self.cfg.OUTPUT_DIR) / "dense.safetensors")
            network = build_network(self.cfg, weights=False)
            if file.endswith(".safetensors"):
                plan, state = read_safetensors(file)
                restore(network, plan, state, file)
            else:
                fill(network, read_weights(file), file)
            self._teacher = use_channels_last(network).requires_grad_(False)
        return self._teacher
