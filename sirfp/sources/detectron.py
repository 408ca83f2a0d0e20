"""Builds models of Detectron2's configs, and finds configs in its model zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError, near, suggested
from ..network.detectron import check_detectron2


def build(cfg: Any, path: str) -> nn.Module:
    """Builds the model of a config by Detectron2.

    Raises:
        InputError: Detectron2 fails to build it.
    """
    from detectron2.modeling import build_model

    try:
        return build_model(cfg)
    except InputError:
        raise
    except (KeyError, ValueError, AssertionError, TypeError, AttributeError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__
        raise InputError(f"the model cannot be built from {path}: {reason}") from None


def zoo_config(config: str) -> tuple[Path, str]:
    """Finds a config of Detectron2's model zoo.

    Args:
        config: its name, e.g. "COCO-Detection/retinanet_R_50_FPN_1x"; without an ending, .yaml is meant.

    Returns:
        The file, and its path within the zoo.

    Raises:
        InputError: the zoo has no such config, or Detectron2 is not installed.
    """
    check_detectron2("Detectron2's model zoo")
    from detectron2 import model_zoo

    folder = Path(model_zoo.__file__).parent / "configs"
    known = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in (".yaml", ".py")}
    wanted = config if config.endswith((".yaml", ".py")) else f"{config}.yaml"
    if wanted not in known:
        tails = {Path(k).name: k for k in sorted(known, reverse=True)}
        hint = suggested([tails[wanted]]) if wanted in tails else near(wanted, known)
        hint = hint or "; e.g. COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
        raise InputError(f"Detectron2's model zoo has no config {config!r}{hint}")
    return folder / wanted, wanted
