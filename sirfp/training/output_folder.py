"""The output folder of a training run: one run at a time uses it, and none overwrites checkpoints."""

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
    """Locks the output folder of a training run, for all its processes.

    Args:
        folder: created if missing.
        resume: True if the run continues from checkpoints in the folder.

    Raises:
        InputError: another run holds the folder, it cannot be written to, or it holds checkpoints and `resume` is
            False, so that they would be overwritten.
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
