"""Detectron2's lazy configs: Python files whose `model` says what to build.

Reading one runs it, so nothing here looks for such files: the user names one, or it is the model zoo's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from .errors import InputError

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def build_lazy(path: str) -> tuple[nn.Module, CfgNode]:
    """Runs a lazy config and builds its model, on the processor with random weights.

    Args:
        path: the file, *.py.

    Returns:
        The model, and a config whose INPUT has the test images' size and format.

    Raises:
        InputError: there is no such file, it does not run, it has no `model`, or the model cannot be built.
    """
    from detectron2.config import LazyConfig, instantiate

    from .config import load_config

    if not Path(path).is_file():
        raise InputError(f"there is no config file {path}")
    try:
        lazy = LazyConfig.load(path)
    except Exception as error:  # whatever the file's own code raises
        raise InputError(f"{path} cannot be run as a lazy config: {_one_line(error)}") from None
    if "model" not in lazy:
        names = ", ".join(sorted(map(str, lazy))) or "nothing"
        raise InputError(f"{path} has no `model`, which a lazy config of a model has; it has {names}")
    try:
        model = instantiate(lazy.model)
    except Exception as error:
        raise InputError(f"the model cannot be built from {path}: {_one_line(error)}") from None
    if not isinstance(model, nn.Module):
        raise InputError(f"`model` in {path} makes a {type(model).__name__}, not a module of PyTorch")
    cfg = load_config("")
    _take_input(cfg, lazy)
    return model.cpu(), cfg


def _take_input(cfg: CfgNode, lazy: Any) -> None:
    """Takes the size and format of test images from a lazy config's data loader, as far as it says them."""
    from omegaconf import OmegaConf

    mapper = OmegaConf.select(lazy, "dataloader.test.mapper", default=None) or {}
    cfg.INPUT.FORMAT = mapper.get("image_format", cfg.INPUT.FORMAT)
    for augmentation in mapper.get("augmentations", None) or []:
        if isinstance(augmentation.get("short_edge_length", None), int):
            cfg.INPUT.MIN_SIZE_TEST = augmentation.short_edge_length
            cfg.INPUT.MAX_SIZE_TEST = augmentation.get("max_size", None) or cfg.INPUT.MAX_SIZE_TEST


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
