"""Numbers the places in a model's code that call a function, so that all rounds of a loop share one number."""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType

from torch import nn

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NETWORKS = os.path.join(_PACKAGE, "models") + os.sep
_CALLING = sys.modules[nn.Module.__module__].__file__
"""The file whose functions call a module's forward, by different lines with hooks and without."""

Stack = list[tuple[CodeType, int]]
"""The functions that run, from the innermost, each as its code and the instruction that it is at."""


def call_stack(until: FrameType | None = None) -> Stack:
    """Returns the functions of the model's code that run, up to a frame of it.

    Left out are the functions that watch or replace calls (those of this package and what runs inside a
    `__torch_function__`), and those of PyTorch that call a module: they differ between the dense network and a cut one.
    Of a function that calls itself the innermost call counts, so that all depths of a recursion share a site.

    Args:
        until: the frame to stop before; None for all frames.
    """
    stack: Stack = []
    seen: set[int] = set()  # ids of the codes since the last call of a module
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not until:
        code = frame.f_code
        if code.co_name == "__torch_function__":
            stack.clear()
            seen.clear()
        elif code.co_filename == _CALLING:
            seen.clear()
        elif id(code) not in seen and not _is_machinery(code.co_filename):
            seen.add(id(code))
            stack.append((code, _instruction(frame)))
        frame = frame.f_back
    return stack


def _instruction(frame: FrameType) -> int:
    """Returns the index of the instruction that a frame is at.

    While a call runs, Python's index is that of the calling instruction or, where Python has specialised it after some
    calls, that of the inline cache behind it. The opcode of caches is 0.
    """
    code, index = frame.f_code.co_code, frame.f_lasti
    while index > 0 and code[index] == 0:
        index -= 2
    return index


def _is_machinery(file: str) -> bool:
    return file.startswith(_PACKAGE) and not file.startswith(_NETWORKS)


class CallSites:
    """The call sites of one forward pass of a module, those of the modules that it calls included.

    The sites of each function are numbered in the order in which they are reached first.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[tuple[int, ...], int]] = {}  # the codes by their ids
        self._stacks: dict[str, list[Stack]] = {}

    def number(self, function: str, stack: Stack) -> int:
        """Returns the number of a call site among those of a function.

        Args:
            function: name of the function (`SizesIn.function`).
            stack: the functions that run (`call_stack`).
        """
        known, stacks = self._known.setdefault(function, {}), self._stacks.setdefault(function, [])
        site = _ids(stack)
        if site not in known:  # `eval` makes equal code each time
            equal = next((known[_ids(other)] for other in stacks if other == stack), None)
            known[site] = len(set(known.values())) if equal is None else equal
            stacks.append(stack)
        return known[site]


def _ids(stack: Stack) -> tuple[int, ...]:
    return tuple(n for code, index in stack for n in (id(code), index))
