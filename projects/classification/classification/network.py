"""The timm network that a config describes, its preprocessing and its optimizer."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from timm.optim import create_optimizer_v2
from torch import nn

from sirfp.errors import InputError
from sirfp.models.timm_weights import create_timm


def build_network(cfg: CfgNode, weights: bool = True) -> nn.Module:
    """Builds an unchanged timm network, so that `timm.create_model` fits its checkpoints and pruned files.

    Args:
        cfg: the whole config.
        weights: True to load MODEL.TIMM.WEIGHTS.
    """
    node = cfg.MODEL.CLASSIFIER
    options: dict[str, Any] = {"num_classes": node.NUM_CLASSES}
    options |= {"in_chans": cfg.INPUT.CHANNELS} if cfg.INPUT.CHANNELS else {}
    options |= {"drop_rate": node.DROP} if node.DROP else {}
    options |= {"drop_path_rate": node.DROP_PATH} if node.DROP_PATH else {}
    network = create_timm(cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS if weights else "", **options)
    if weights and cfg.MODEL.TIMM.WEIGHTS and network.pretrained_cfg.get("num_classes") != node.NUM_CLASSES:
        _reset_classifier(network)
    return network.to(torch.device(cfg.MODEL.DEVICE))


def _reset_classifier(network: nn.Module) -> None:
    """Initialises a new classifier near zero: large outputs at the start would disturb the pretrained features."""
    for module in network.get_classifier().modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def build_optimizer(cfg: CfgNode, network: nn.Module) -> torch.optim.Optimizer:
    """Builds SOLVER.OPTIMIZER by timm; norms and biases have no weight decay unless SOLVER.DECAY_NORMS is set.

    Raises:
        InputError: there is no such optimizer, it does not have one of the options, or it needs second derivatives.
    """
    node = cfg.SOLVER
    options = dict(zip(node.OPTIMIZER_OPTIONS[::2], node.OPTIMIZER_OPTIONS[1::2], strict=False))
    try:
        optimizer = create_optimizer_v2(
            network,
            opt=node.OPTIMIZER,
            lr=node.BASE_LR,
            weight_decay=node.WEIGHT_DECAY,
            momentum=node.MOMENTUM,
            filter_bias_and_bn=not node.DECAY_NORMS,
            layer_decay=node.LAYER_DECAY or None,
            **options,
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise InputError(
            f"SOLVER.OPTIMIZER {node.OPTIMIZER!r} cannot be built: {error}; see `timm.optim.list_optimizers()`"
        ) from error
    if getattr(optimizer, "is_second_order", False):
        raise InputError(f"SOLVER.OPTIMIZER {node.OPTIMIZER!r} needs second derivatives, which a run does not compute")
    for group in optimizer.param_groups:  # PyTorch's schedules multiply each group's initial rate
        group["lr"] = node.BASE_LR * group.get("lr_scale", 1.0)
    return optimizer
