"""Builds models from Detectron2's lazy configs: Python files that describe objects to build.

Reading a lazy config executes it, like any Python file. Only read files that you trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from torch import nn

from ..config.reading import config_file, pairs
from ..errors import InputError, near


def build_lazy(path: str, opts: Sequence[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the model of a lazy config on the CPU.

    Args:
        path: a Python file that defines `model`.
        opts: KEY VALUE pairs that override the file, e.g. `model.num_classes 3`.

    Returns:
        The model, and settings of its inputs: FORMAT, and MIN_SIZE_TEST if the file sets it.

    Raises:
        InputError: the file cannot be run or defines no model, the model cannot be built, or the config lacks a key.
    """
    from detectron2.config import LazyConfig, instantiate

    config_file(path)
    try:
        cfg = LazyConfig.load(path)
    except Exception as error:  # any class: the file's code raises it
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {_first_line(error)}") from error
    if "model" not in cfg:
        raise InputError(f"{path} defines no model; it defines {', '.join(sorted(map(str, cfg))) or 'nothing'}")
    _override(cfg, opts)
    try:
        model = instantiate(cfg.model)
    except Exception as error:  # any class: the model's code raises it
        raise InputError(f"the model cannot be built from {path}: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` in {path} is a {type(model).__name__}, not a module of PyTorch")
    return model.cpu().eval(), _inputs(cfg, model)


def _override(cfg: Any, opts: Sequence[str]) -> None:
    from omegaconf import OmegaConf

    missing = object()
    for key, value in pairs(opts):
        if OmegaConf.select(cfg, key, default=missing) is missing:
            owner, _, leaf = key.rpartition(".")
            known = OmegaConf.select(cfg, owner, default=None) if owner else cfg
            raise InputError(f"the config has no key {key!r}{near(leaf, list(known) if known is not None else [])}")
        try:
            OmegaConf.update(cfg, key, yaml.safe_load(value))
        except yaml.YAMLError:
            raise InputError(f"{key}: {value!r} is not a valid value") from None


def _inputs(cfg: Any, model: nn.Module) -> dict[str, Any]:
    from omegaconf import OmegaConf

    found = {"FORMAT": getattr(model, "input_format", None) or "BGR"}
    for step in OmegaConf.select(cfg, "dataloader.test.mapper.augmentations", default=None) or []:
        side = step.get("short_edge_length") if hasattr(step, "get") else None
        if isinstance(side, int):
            found["MIN_SIZE_TEST"] = side
    return found


def _first_line(error: Exception) -> str:
    return " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())[:200]
