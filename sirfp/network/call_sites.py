"""Knows the places in a model's code that call a function, so that all rounds of a loop share one.

A call site is the stack of functions, each with the instruction that it is at, between the forward of a module and the
call. It has a number among those that the forward reaches, and a mark, which is a checksum of the stack: the number of
a site changes with other inputs for which the code takes another branch, the mark does not. Marks hold for one version
of Python and of the code, numbers for any; the first half of a mark tells whether it holds.
"""

from __future__ import annotations

import dis
import inspect
import os
import sys
import zlib
from types import CodeType, FrameType
from typing import NamedTuple

from torch import nn

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NETWORKS = os.path.join(_PACKAGE, "models") + os.sep
_CALLING = sys.modules[nn.Module.__module__].__file__
"""The file whose functions call a module's forward, by different lines with hooks and without."""

_CACHE, _CALL, _PRECALL = (dis.opmap.get(name, -1) for name in ("CACHE", "CALL", "PRECALL"))
_BEFORE = 4
"""Distance in bytes from a PRECALL and its cache to the CALL."""

Stack = list[tuple[CodeType, int]]
"""The functions that run, from the innermost, each as its code and the instruction that it is at."""


def call_stack(until: FrameType | None = None) -> Stack:
    """Returns the functions of the model's code that run, up to a frame.

    Args:
        until: the frame to stop before; None for all frames.
    """
    frames: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not until:
        frames.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return of_the_model(frames)


def of_the_model(frames: Stack) -> Stack:
    """Returns the frames that are the same in the dense network and in a cut one.

    Left out are the functions that watch or replace calls (those of this package and what runs inside a
    `__torch_function__`), and those of PyTorch that call a module. Of a function that calls itself the innermost call
    counts, so that all depths of a recursion share a site.
    """
    stack: Stack = []
    seen: set[int] = set()  # ids of the codes since the last call of a module
    for code, index in frames:
        if code.co_name == "__torch_function__":
            stack.clear()
            seen.clear()
        elif code.co_filename == _CALLING:
            seen.clear()
        elif id(code) not in seen and not _is_machinery(code.co_filename):
            seen.add(id(code))
            stack.append((code, _instruction(code, index)))
    return stack


def _instruction(code: CodeType, index: int) -> int:
    """Returns the index of the instruction that a function is at.

    While a call runs, Python's index is that of the calling instruction. Where Python has specialised it after some
    calls, it may be that of the inline cache behind it, or of the PRECALL before it that Python 3.11 has.
    """
    instructions = code.co_code
    while index > 0 and instructions[index] == _CACHE:
        index -= 2
    if index >= _BEFORE and instructions[index] == _CALL and instructions[index - _BEFORE] == _PRECALL:
        index -= _BEFORE
    return index


def _is_machinery(file: str) -> bool:
    return file.startswith(_PACKAGE) and not file.startswith(_NETWORKS)


def code_mark(kind: type[nn.Module]) -> str:
    """Returns the first half of the marks of all sites in a class's forward: of the version of Python and of its code.

    Another one tells that the second halves are not to be compared.
    """
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    parts = (sys.version_info[:2], sys.flags.optimize, code and (code.co_code, code.co_names))
    return _checksum(parts)


def site_mark(stack: Stack) -> str:
    """Returns the second half of the mark of a call site, from the functions up to the module's forward."""
    return _checksum([(code.co_name, index) for code, index in stack])


def _checksum(parts: object) -> str:
    return f"{zlib.crc32(repr(parts).encode()):08x}"


class Place(NamedTuple):
    """The place of a call that takes sizes.

    Attributes:
        module: name of the module whose forward makes it.
        function: name of the function.
        site: number of the call site among those of the function.
        round: number of the call among those of its site.
        mark: mark of the call site.
    """

    module: str
    function: str
    site: int = 0
    round: int = 0
    mark: str = ""

    @property
    def first(self) -> Place:
        """The place of the first call of the same site, by which sites are compared."""
        return self._replace(round=0)


class Site:
    """A call site, while a forward runs.

    Attributes:
        number: its number among the sites of a function, in the order in which they are reached first.
        stack: the functions that run.
        calls: how often it has been reached.
    """

    def __init__(self, number: int, stack: Stack):
        self.number, self.stack, self.calls = number, stack, 0


class CallSites:
    """The call sites of one forward pass of a module, those of the modules that it calls included."""

    def __init__(self) -> None:
        self._sites: dict[str, list[Site]] = {}
        self._known: dict[tuple, Site] = {}  # by the ids of the codes; sites keep these alive

    def reached(self, function: str, stack: Stack) -> Site:
        """Counts a call and returns its site.

        Args:
            function: name of the function (`SizesIn.function`).
            stack: the functions that run (`call_stack`).
        """
        key = (function, *(n for code, index in stack for n in (id(code), index)))
        site = self._known.get(key)
        if site is None:
            sites = self._sites.setdefault(function, [])
            site = next((s for s in sites if s.stack == stack), None)  # `eval` makes equal code each time
            if site is None:
                site = Site(len(sites), stack)
                sites.append(site)
                self._known[key] = site
        site.calls += 1
        return site
