"""Files of a run about its loss curves: those of each pruning, and those of an interrupted measurement."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

from ..budget.curve_store import CurveStore
from ..budget.curves import LEVELS
from ..budget.sensitivity import ranked, table
from ..files.whole import whole_file
from ..processes import rank
from ..reporting import figures
from .registry import session

FILE, CACHE = "curves.json", "curve_cache.json"


def curve_store(folder: str) -> CurveStore:
    """Returns the store of this process's losses: `curve_cache.json`, in other processes `curve_cache.json.rank1`, ...

    Raises:
        InputError: the file exists and is another one.
    """
    return CurveStore(os.path.join(folder, CACHE + (f".rank{rank()}" if rank() else "")))


def write_curves(trainer: Any, step: int) -> None:
    """Writes the loss curves of the last pruning; does nothing if they were not measured.

    Files in the output folder: `curves.json` (of all prunings, and of each cut of a pruning), `curves.md` and
    `curves.png` (of this pruning's first cut). The figure is also an image of TensorBoard, `sirfp/curves`.

    Args:
        trainer: the trainer, right after the pruning.
        step: the number of this pruning, from 1.
    """
    cuts = session(trainer).measured
    if not cuts or not comm.is_main_process():
        return
    folder = trainer.cfg.OUTPUT_DIR
    earlier = [one for one in _read(os.path.join(folder, FILE)) if one["step"] < step]
    groups = [[one.to_json() for one in cut] for cut in cuts]
    prunings = [*earlier, {"step": step, "iteration": trainer.iter + 1, "cuts": groups}]
    title = f"pruning {step}"
    texts = {FILE: json.dumps({"prunings": prunings}), "curves.md": table(cuts[0], LEVELS).markdown()}
    for name, text in texts.items():
        with whole_file(os.path.join(folder, name)) as beside:
            beside.write_text(text + "\n")
    picture = os.path.join(folder, "curves.png")
    if any(0 < loss < np.inf for one in cuts[0] for loss in one.curve.losses):
        figures.loss_curves({one.group: one.points() for one in ranked(cuts[0])}, picture, title)
        trainer.storage.put_image("sirfp/curves", _pixels(picture))


def _read(path: str) -> list[dict[str, Any]]:
    """Returns the prunings that a run wrote before it was resumed; none if the file is missing or damaged."""
    try:
        with open(path) as file:
            return [one for one in json.load(file)["prunings"] if isinstance(one["step"], int)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _pixels(path: str) -> torch.Tensor:
    """Returns a picture as TensorBoard takes it, (3, H, W) of uint8."""
    import PIL.Image

    with PIL.Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
