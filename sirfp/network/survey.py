"""Notes the order of one forward pass: the calls of modules, and the tensors that they read, change and return."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from math import inf
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .forward import tensors
from .schedule import OUTSIDE, Call, Schedule, Seen, state


def survey(model: nn.Module, run: Callable[[], Any]) -> tuple[Schedule, Any]:
    """Runs a forward pass and notes its order.

    Args:
        model: the network.
        run: runs the pass.

    Returns:
        The order, and what `run` returns.
    """
    watch = _Watch(model)
    before, versions = _random_states(model), [tensor._version for _, tensor in state(model)]
    with replaced_forwards(model, dict(model.named_modules()), watch.wrapper), watch:
        output = run()
    watch.finish(output)
    same = all(torch.equal(a, b) for a, b in zip(before, _random_states(model), strict=True))
    watch.schedule.repeatable = same and versions == [tensor._version for _, tensor in state(model)]
    return watch.schedule, output


def _random_states(model: nn.Module) -> list[torch.Tensor]:
    devices = {p.device for p in model.parameters() if p.is_cuda}
    return [torch.random.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))]


@contextmanager
def replaced_forwards(
    model: nn.Module, names: Iterable[str], wrapper: Callable[[str, nn.Module, Callable], Callable]
) -> Iterator[None]:
    """Replaces, while active, the `forward` of modules, so that their hooks run as before.

    Args:
        model: the network.
        names: the modules' names.
        wrapper: returns the new function for a module's name, the module and its own `forward`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    kept: list[tuple[nn.Module, Any]] = []
    try:
        for name in names:
            module = modules[name]
            if isinstance(module, torch.jit.ScriptModule):
                continue
            kept.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = wrapper(name, module, module.forward)
        yield
    finally:
        for module, forward in reversed(kept):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


class _Watch(TorchFunctionMode):
    """Notes calls of modules, and the tensors that PyTorch's functions get."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.schedule, self.running, self.now = Schedule(), [OUTSIDE], 0
        self.state: dict[int, list[str]] = {}
        for name, tensor in state(model):
            self.state.setdefault(id(tensor), []).append(name)
        self.alive: dict[int, tuple[weakref.ref, Seen]] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.now += 1
        if func not in SHAPES:
            for _, tensor in tensors((args, kwargs)):
                for name in self.state.get(id(tensor), ()):
                    self.schedule.first_use.setdefault(name, self.now)
                found = self.alive.get(id(tensor))
                if found is not None:
                    found[1].uses.append((self.now, self.running[-1]))
        return func(*args, **(kwargs or {}))

    def wrapper(self, name: str, module: nn.Module, forward: Callable) -> Callable:
        """Returns a module's `forward` that is noted."""

        @wraps(forward)
        def noted(*args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():
                number = self._start(name, module, (args, kwargs))
                before = _attributes(module)
            try:
                output = forward(*args, **kwargs)
                with torch._C.DisableTorchFunction():
                    self._end(number, output, _attributes(module) != before)
                return output
            finally:
                self.running.pop()

        return noted

    def _start(self, name: str, module: nn.Module, inputs: Any) -> int:
        self._note_writes()
        number = len(self.schedule.calls)
        self.schedule.calls.append(Call(name, self.running[-1], self.now))
        self.running.append(number)
        passes_on = type(module).forward is nn.Sequential.forward
        for _, tensor in tensors(inputs):
            seen = self._seen(tensor)
            if not passes_on:  # a function that cannot be watched may read it, e.g. one written in C++
                seen.uses.append((self.now, number))
        self.now += 1
        return number

    def _end(self, number: int, output: Any, remembers: bool) -> None:
        self._note_writes()
        self.now += 1
        call = self.schedule.calls[number]
        call.end = self.now
        for _, tensor in tensors(output):
            new = id(tensor) not in self.alive
            seen = self._seen(tensor)
            if new:
                self._note_views(tensor, seen)
            seen.makers.append((self.now, number))
            call.results.append(seen)
        self.now += 1
        above = number
        while remembers and above != OUTSIDE:
            self.schedule.calls[above].remembers = True
            above = self.schedule.calls[above].caller

    def finish(self, output: Any) -> None:
        """Notes that the result of the pass is used at its end."""
        self._note_writes()
        for _, tensor in tensors(output):
            if id(tensor) in self.alive:
                self.alive[id(tensor)][1].uses.append((inf, OUTSIDE))

    def _seen(self, tensor: torch.Tensor) -> Seen:
        key = id(tensor)
        if key not in self.alive:
            seen = Seen(self.now, tensor._version)

            def forget(_: Any) -> None:
                self.alive.pop(key, None)

            self.alive[key] = (weakref.ref(tensor, forget), seen)
            self.schedule.seen.append(seen)
        return self.alive[key][1]

    def _note_views(self, tensor: torch.Tensor, seen: Seen) -> None:
        memory = _memory(tensor)
        for reference, other in self.alive.values():
            original = reference()
            if memory and other is not seen and original is not None and _memory(original) == memory:
                other.views.append(seen)

    def _note_writes(self) -> None:
        for reference, seen in list(self.alive.values()):
            tensor = reference()
            if tensor is not None and tensor._version != seen.version:
                seen.version = tensor._version
                seen.writes.append((self.now, self.running[-1]))


_PROPERTIES = ("shape", "device", "dtype", "ndim", "requires_grad", "is_cuda", "layout")
SHAPES = {getattr(torch.Tensor, name).__get__ for name in _PROPERTIES} | {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.stride,
    torch.Tensor.__len__,
    torch.Tensor.is_floating_point,
    torch.is_floating_point,
    torch.numel,
}
"""Functions of a tensor's shape and kind, which do not read its values."""


def _memory(tensor: torch.Tensor) -> int:
    """Returns the address of a tensor's memory, 0 if it has none, as a sparse or empty tensor."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _attributes(module: nn.Module) -> list[tuple[str, int, int]]:
    """The attributes of a module, for a comparison: their names, identities and lengths."""
    items = [*vars(module).items(), *module._buffers.items()]
    return [(name, id(value), len(value) if isinstance(value, (list, dict, set)) else 0) for name, value in items]
