"""Numbers the places in a model's code that call a function, so that all rounds of a loop share one number."""

from __future__ import annotations

import os
import sys
from types import FrameType

from torch import nn

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NETWORKS = os.path.join(_PACKAGE, "models") + os.sep
_CALLING = sys.modules[nn.Module.__module__].__file__
"""The file whose functions call a module's forward, by different lines with hooks and without."""

Stack = tuple[int, ...]
"""The functions that run, from the innermost, each as the id of its code and the instruction that it is at."""


def call_stack(until: FrameType | None = None) -> Stack:
    """Returns the functions of the model's code that run, up to a frame of it.

    Left out are the functions that watch or replace calls (those of this package and what runs inside a
    `__torch_function__`), and those of PyTorch that call a module: they differ between the dense network and a cut one.

    Args:
        until: the frame to stop before; None for all frames.
    """
    stack: list[int] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not until:
        code = frame.f_code
        if code.co_name == "__torch_function__":
            stack.clear()
        elif not _is_machinery(code.co_filename):
            stack += id(code), frame.f_lasti
        frame = frame.f_back
    return tuple(stack)


def _is_machinery(file: str) -> bool:
    return file == _CALLING or (file.startswith(_PACKAGE) and not file.startswith(_NETWORKS))


class CallSites:
    """The call sites of one forward pass of a module, those of the modules that it calls included.

    The sites of each function are numbered in the order in which they are reached first.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[Stack, int]] = {}

    def number(self, function: str, stack: Stack) -> int:
        """Returns the number of a call site among those of a function.

        Args:
            function: name of the function (`SizesIn.function`).
            stack: the functions that run (`call_stack`).
        """
        known = self._known.setdefault(function, {})
        return known.setdefault(stack, len(known))
