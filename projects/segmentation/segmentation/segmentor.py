"""A segmentor with GSRL and an auxiliary head for training; for inference it equals Detectron2's segmentor."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from detectron2.structures import ImageList
from torch import nn

from sirfp.errors import InputError

from .auxiliary import AuxiliaryHead
from .gsrl import GSRL, NO_CLASS

PHASES = ("never", "always", "pruned")


def with_supervised_segmentor(cfg: CfgNode) -> CfgNode:
    """Returns the config of the training model: it uses `SupervisedSegmentor` for GSRL or an auxiliary head.

    The given config is not changed. Its META_ARCHITECTURE stays Detectron2's `SemanticSegmentor`, so that the commands
    of `sirfp` and other programs build the network for deployment, without the parts for training.

    Raises:
        InputError: GSRL or an auxiliary head is set for another architecture, or SOLVER.GSRL.WHEN is unknown.
    """
    if cfg.SOLVER.GSRL.WHEN not in PHASES:
        raise InputError(f"SOLVER.GSRL.WHEN must be one of {', '.join(PHASES)}, got {cfg.SOLVER.GSRL.WHEN!r}")
    if cfg.SOLVER.GSRL.WHEN == "never" and not cfg.SOLVER.AUXILIARY.FEATURE:
        return cfg
    if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor":
        raise InputError(
            "SOLVER.GSRL and SOLVER.AUXILIARY are for MODEL.META_ARCHITECTURE SemanticSegmentor, "
            f"got {cfg.MODEL.META_ARCHITECTURE}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = SupervisedSegmentor.__name__
    cfg.freeze()
    return cfg


@META_ARCH_REGISTRY.register()
class SupervisedSegmentor(SemanticSegmentor):
    """Detectron2's `SemanticSegmentor` with a choice of losses and, in training, an auxiliary head.

    Attributes:
        rebalanced: True if GSRL is the current loss, False for the head's loss (`MODEL.SEM_SEG_HEAD.LOSS_TYPE`).
    """

    @configurable
    def __init__(
        self,
        *,
        gsrl: GSRL,
        rebalanced: bool,
        auxiliary_head: AuxiliaryHead | None,
        auxiliary_feature: str,
        auxiliary_weight: float,
        **parts: Any,
    ):
        """Stores GSRL, its initial state (on or off), the auxiliary head, and the parts of a `SemanticSegmentor`."""
        super().__init__(**parts)
        self.gsrl, self.rebalanced = gsrl, rebalanced
        self.auxiliary_head = auxiliary_head
        self.auxiliary_feature, self.auxiliary_weight = auxiliary_feature, auxiliary_weight
        head = self.sem_seg_head
        self.own_loss = getattr(head, "loss", None) or nn.CrossEntropyLoss(ignore_index=head.ignore_value)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Reads `SOLVER.GSRL` and `SOLVER.AUXILIARY` in addition to Detectron2's keys of the model."""
        head, node, aux = cfg.MODEL.SEM_SEG_HEAD, cfg.SOLVER.GSRL, cfg.SOLVER.AUXILIARY
        parts = super().from_config(cfg)
        return {
            **parts,
            "gsrl": GSRL(head.IGNORE_VALUE, node.BETA, node.WINDOW, node.GAMMA),
            "rebalanced": node.WHEN == "always",
            "auxiliary_head": _auxiliary_head(cfg, parts["backbone"]),
            "auxiliary_feature": aux.FEATURE,
            "auxiliary_weight": aux.WEIGHT,
        }

    def train(self, mode: bool = True) -> SupervisedSegmentor:
        """Sets the mode of all modules, but not the flag of the head itself: it returns logits in training too."""
        super().train(mode)
        self.sem_seg_head.training = False
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As `SemanticSegmentor.forward`; training inputs may have a "sampled_class", see `GSRL.class_weights`."""
        if not self.training:
            return super().forward(batched_inputs)
        images = self._batch([(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs])
        labels = [x["sem_seg"].to(self.device) for x in batched_inputs]
        labels = self._batch(labels, self.sem_seg_head.ignore_value)
        features = self.backbone(images)
        logits, _ = self.sem_seg_head(features)
        loss = self.own_loss
        if self.rebalanced:
            sampled = [int(x.get("sampled_class", NO_CLASS)) for x in batched_inputs]
            sampled = torch.tensor(sampled).to(self.device, non_blocking=True)
            loss = partial(self.gsrl, weights=self.gsrl.weights(logits, labels, sampled))
        losses = {"loss_sem_seg": loss(logits, labels) * self.sem_seg_head.loss_weight}
        if self.auxiliary_head is not None:
            inner = self.auxiliary_head(features[self.auxiliary_feature], labels.shape[-2:])
            losses["loss_auxiliary"] = loss(inner, labels) * self.auxiliary_weight
        return losses

    def _batch(self, tensors: list[torch.Tensor], pad: float = 0.0) -> torch.Tensor:
        backbone = self.backbone
        return ImageList.from_tensors(tensors, backbone.size_divisibility, pad, backbone.padding_constraints).tensor


def _auxiliary_head(cfg: CfgNode, backbone: nn.Module) -> AuxiliaryHead | None:
    """Builds the head of `SOLVER.AUXILIARY`, if any; raises InputError if the backbone lacks the head's input."""
    node, head, shapes = cfg.SOLVER.AUXILIARY, cfg.MODEL.SEM_SEG_HEAD, backbone.output_shape()
    if not node.FEATURE:
        return None
    if node.FEATURE not in shapes:
        raise InputError(
            f"SOLVER.AUXILIARY.FEATURE: the backbone gives no {node.FEATURE!r} but {', '.join(shapes)}; "
            "add it to the backbone's OUT_FEATURES"
        )
    return AuxiliaryHead(shapes[node.FEATURE].channels, node.CHANNELS, head.NUM_CLASSES, head.NORM)
