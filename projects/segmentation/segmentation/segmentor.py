"""A segmentor that is trained by more than its head's own loss; in inference it is Detectron2's, layer for layer."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from detectron2.structures import ImageList
from torch import nn

from sirfp.errors import InputError

from .gsrl import GSRL, NO_CLASS

PHASES = ("never", "always", "pruned")


def supervised(cfg: CfgNode) -> CfgNode:
    """The config with this segmentor in place of Detectron2's, where it asks for what only this one has.

    The config's own META_ARCHITECTURE stays Detectron2's, so `sirfp`'s commands and others build the network that is
    pruned and deployed, without what only training needs.

    Raises:
        InputError: it asks for that with another architecture, or a value is none of the known.
    """
    if cfg.SOLVER.GSRL.WHEN not in PHASES:
        raise InputError(f"SOLVER.GSRL.WHEN must be one of {', '.join(PHASES)}, got {cfg.SOLVER.GSRL.WHEN!r}")
    if cfg.SOLVER.GSRL.WHEN == "never":
        return cfg
    if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor":
        raise InputError(
            f"SOLVER.GSRL is for MODEL.META_ARCHITECTURE SemanticSegmentor, got {cfg.MODEL.META_ARCHITECTURE}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = SupervisedSegmentor.__name__
    cfg.freeze()
    return cfg


@META_ARCH_REGISTRY.register()
class SupervisedSegmentor(SemanticSegmentor):
    """Detectron2's `SemanticSegmentor` with a choice of losses.

    Attributes:
        rebalanced: whether GSRL is the loss now; else it is the head's own (`MODEL.SEM_SEG_HEAD.LOSS_TYPE`).
    """

    @configurable
    def __init__(self, *, gsrl: GSRL, rebalanced: bool, **parts: Any):
        """Takes GSRL, whether to begin with it, and the parts of a `SemanticSegmentor`."""
        super().__init__(**parts)
        self.gsrl, self.rebalanced = gsrl, rebalanced
        head = self.sem_seg_head
        self.own_loss = getattr(head, "loss", None) or nn.CrossEntropyLoss(ignore_index=head.ignore_value)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads `SOLVER.GSRL` beside what the model is."""
        node = cfg.SOLVER.GSRL
        gsrl = GSRL(cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE, node.BETA, node.WINDOW, node.GAMMA)
        return {**super().from_config(cfg), "gsrl": gsrl, "rebalanced": node.WHEN == "always"}

    def train(self, mode: bool = True) -> SupervisedSegmentor:
        """Sets the mode, but the head's own flag: it returns logits in training too, while its layers train."""
        super().train(mode)
        self.sem_seg_head.training = False
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As `SemanticSegmentor.forward`; for training, inputs may say "sampled_class", see `GSRL.class_weights`."""
        if not self.training:
            return super().forward(batched_inputs)
        images = self._batch([(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs])
        labels = [x["sem_seg"].to(self.device) for x in batched_inputs]
        labels = self._batch(labels, self.sem_seg_head.ignore_value)
        logits, _ = self.sem_seg_head(self.backbone(images))
        if self.rebalanced:
            sampled = [int(x.get("sampled_class", NO_CLASS)) for x in batched_inputs]
            sampled = torch.tensor(sampled).to(self.device, non_blocking=True)
            loss = self.gsrl(logits, labels, self.gsrl.weights(logits, labels, sampled))
        else:
            loss = self.own_loss(logits, labels)
        return {"loss_sem_seg": loss * self.sem_seg_head.loss_weight}

    def _batch(self, tensors: list[torch.Tensor], pad: float = 0.0) -> torch.Tensor:
        backbone = self.backbone
        return ImageList.from_tensors(tensors, backbone.size_divisibility, pad, backbone.padding_constraints).tensor
