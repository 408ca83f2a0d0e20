"""Models of Detectron2's lazy configs: Python files that describe objects to be built.

Such a file is a program and is run when it is read, so only read one that you trust, as with any Python file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from torch import nn

from ..config.reading import config_file, pairs
from ..errors import InputError, near


def build_lazy(path: str, opts: Sequence[str] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the model that a lazy config describes, on the processor.

    Args:
        path: a Python file with a `model`.
        opts: KEY VALUE pairs that win over the file, e.g. `model.num_classes 3`.

    Returns:
        The model, and what the file says of its inputs: FORMAT, and MIN_SIZE_TEST where it says one.

    Raises:
        InputError: the file cannot be read, holds no model, or a key is none of its own.
    """
    from detectron2.config import LazyConfig, instantiate

    config_file(path)
    try:
        cfg = LazyConfig.load(path)
    except Exception as error:  # the file's own code may raise anything
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {_first_line(error)}") from error
    if "model" not in cfg:
        raise InputError(f"{path} describes no model: it has {', '.join(sorted(map(str, cfg))) or 'nothing'}")
    _override(cfg, opts)
    try:
        model = instantiate(cfg.model)
    except Exception as error:  # so may the model's
        raise InputError(f"the model cannot be built from {path}: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"the model that {path} describes is no module of PyTorch but {type(model).__name__}")
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
            raise InputError(f"{key}: {value!r} is no value") from None


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
