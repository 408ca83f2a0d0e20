"""The output folder of a training run: one run at a time writes to it, and no run overwrites checkpoints.

Also names the folder in it that holds the files of predictions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from ..errors import InputError
from ..files.lock import locked
from ..files.whole import remove_parts
from ..processes import decide_once
from .checkpointer import Checkpointer


@contextmanager
def hold_output_folder(folder: str, *, resume: bool) -> Iterator[None]:
    """Locks the output folder of a training run, for all processes of the run.

    Args:
        folder: the folder; created if missing.
        resume: True if the run continues from checkpoints in the folder.

    Raises:
        InputError: another run uses the folder, the folder cannot be written to, or it holds checkpoints and `resume`
            is False, so that the run would overwrite them.
    """
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(locked(folder, "training run"))
            remove_parts(folder)
            there = Checkpointer(nn.Identity(), folder).resumable()
            if there and not resume:
                raise InputError(
                    f"{folder} holds checkpoints of an earlier run ({there[0].name}); continue it with --resume, or "
                    "start a new run after setting OUTPUT_DIR to another folder or removing this folder"
                )

        decide_once(take)
        yield


def predictions_folder(cfg: CfgNode, data_set: str) -> Path | None:
    """The folder for files of what is predicted for a test set; None if `TEST.PREDICTIONS` is off."""
    return Path(cfg.OUTPUT_DIR, "predictions", data_set) if cfg.TEST.PREDICTIONS else None
