"""Watches the calls in which a network's code gives sizes, such as `x.view(b, n, heads, width)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .call_sites import CallSites, call_stack
from .sizes import MAKERS, SizesIn, sizes_in
from .walk import walk

Place = tuple[str, int, str, int]
"""(name of the module whose forward makes the call, number of the call in this forward, function, number of the call
site among those of the function); see `call_key` and `site_key`."""


def site_of(place: Place) -> tuple[str, str, int]:
    """Returns the module, the function and the number of the call site of a place."""
    name, _, function, site = place
    return name, function, site


class _Running:
    """A module whose forward runs.

    Attributes:
        name: the module's name.
        calls: its number of calls that take sizes, and of those that make tensors.
        sites: the sites of these calls.
    """

    def __init__(self, name: str):
        self.name, self.calls, self.sites = name, [0, 0], CallSites()


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
            self._running.append(_Running(name))
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
        kind, stack = int(found.function in MAKERS), call_stack()
        for running in self._running:
            running.calls[kind] += 1
            site = running.sites.number(found.function, stack)
        place = running.name, running.calls[kind] - 1, found.function, site

        def make(sizes: list) -> Any:
            new_args, new_kwargs = found.arguments(sizes)
            return func(*new_args, **new_kwargs)

        return self.seen(place, found, args[0] if args else None, make)
