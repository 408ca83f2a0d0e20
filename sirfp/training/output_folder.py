"""The output folder of a training run: one run at a time, and no earlier one's checkpoints written over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ..errors import InputError
from ..files.lock import locked
from ..files.whole import remove_parts
from ..processes import decide_once
from .checkpointer import Checkpointer


@contextmanager
def hold_output_folder(folder: str, *, resume: bool) -> Iterator[None]:
    """Holds the output folder of a training run, for all its processes.

    Args:
        folder: made where it is not there.
        resume: whether the run goes on from checkpoints in it.

    Raises:
        InputError: another run is at work there, it cannot be written to, or it holds checkpoints that a run which does
            not go on from them would write over.
    """
    with ExitStack() as held:

        def take() -> None:
            held.enter_context(locked(folder, "training run"))
            remove_parts(folder)
            there = Checkpointer(nn.Identity(), folder).resumable()
            if there and not resume:
                raise InputError(
                    f"{folder} holds checkpoints of an earlier run ({there[0].name}): --resume goes on from them; to "
                    "begin anew, give OUTPUT_DIR another folder or remove this one"
                )

        decide_once(take)
        yield
