"""Watches the calls in which a network's code gives sizes, such as `x.view(b, n, heads, width)`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .call_sites import CallSites, Place, call_stack, code_mark, site_mark
from .size_calls import SizesIn, sizes_in
from .walk import walk


class _Running:
    """A module whose forward runs.

    Attributes:
        name: the module's name.
        kind: its class.
        frame: the frame that calls its forward.
        sites: the sites of its calls that take sizes.
    """

    def __init__(self, name: str, module: nn.Module, frame: FrameType):
        self.name, self.kind, self.frame, self.sites = name, type(module), frame, CallSites()


class SizeWatch(TorchFunctionMode):
    """Passes each call that takes sizes to a function, while active.

    Args:
        model: the model that runs.
        seen: called with the place of the call, its sizes, the tensor that is its first argument, and a function that
            makes the call with given sizes; it returns the result of the call.
        entered: called with the name of each module whose forward begins, the module and its arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        seen: Callable[[Place, SizesIn, Any, Callable[[list], Any]], Any],
        entered: Callable[[str, nn.Module, tuple], None] | None = None,
    ):
        super().__init__()
        self.model, self.seen, self.entered = model, seen, entered
        self._running: list[_Running] = []
        self._handles: list = []

    def owner(self) -> str:
        """Returns the name of the module whose forward runs, "" for the model itself."""
        return self._running[-1].name if self._running else ""

    def __enter__(self) -> SizeWatch:
        for name, module in walk(self.model):
            if not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                self._handles.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
                self._handles.append(module.register_forward_hook(self._leaving, always_call=True))
        return super().__enter__()

    def __exit__(self, *exc) -> None:
        super().__exit__(*exc)
        self._running.clear()
        while self._handles:
            self._handles.pop().remove()

    def _entering(self, name: str):
        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self._running.append(_Running(name, module, sys._getframe(1)))
            if self.entered is not None:
                self.entered(name, module, (*args, *kwargs.values()))

        return enter

    def _leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._running:
            self._running.pop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = sizes_in(func, args, kwargs)
        if found is None or not self._running:
            return func(*args, **kwargs)
        stack, own = call_stack(self._running[0].frame), self._running[-1]
        for running in self._running:
            site = running.sites.reached(found.function, stack)
        mark = code_mark(own.kind) + site_mark(call_stack(own.frame))
        place = Place(own.name, found.function, site.number, site.calls - 1, mark)

        def make(sizes: list) -> Any:
            new_args, new_kwargs = found.arguments(sizes)
            return func(*new_args, **new_kwargs)

        return self.seen(place, found, args[0] if args else None, make)
