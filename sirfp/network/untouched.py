"""Keeps what belongs to the caller as it is while a model runs: inputs, tensors, random numbers, inference mode."""

from __future__ import annotations

import copy
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from .module_copies import copied_modules
from .walk import walk_buffers, walk_modules, walk_parameters, walk_tensors


def copied_inputs(inputs: Any, memo: dict[int, Any] | None = None) -> Any:
    """Copies the tensors in nested containers, so that a model that writes into its inputs changes only the copies.

    Args:
        inputs: tensors, containers, and objects such as Detectron2's `Instances`. An object that cannot be copied is
            returned as it is.
        memo: the copies made so far by the identity of their originals, as in `copy.deepcopy`: a tensor that occurs
            twice is copied once.
    """
    memo = {} if memo is None else memo
    if id(inputs) in memo:
        return memo[id(inputs)]
    if isinstance(inputs, torch.Tensor):
        done: Any = inputs.detach().clone()
    elif isinstance(inputs, tuple) and type(inputs) is not tuple and hasattr(inputs, "_fields"):
        done = type(inputs)(*(copied_inputs(value, memo) for value in inputs))
    elif type(inputs) in (list, tuple, set):
        done = type(inputs)(copied_inputs(value, memo) for value in inputs)
    elif type(inputs) is dict:
        done = {key: copied_inputs(value, memo) for key, value in inputs.items()}
    else:
        try:
            done = copy.deepcopy(inputs, memo)
        except Exception:  # e.g. an object with a lock or with a tensor that has a gradient graph
            done = inputs
    memo[id(inputs)] = done
    return done


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restores, at exit, a model's parameters and buffers, and the states of random number generators.

    Some forward passes merge weights, count their calls or draw random numbers, also in evaluation mode.
    """
    tables: list[Any] = [table for m in walk_modules(model) for table in (m._parameters, m._buffers)]
    before = [dict(table.items()) for table in tables]
    saved = {id(t): (t, t.data, t.detach().clone()) for t in _tensors(model)}
    with random_states(model):
        try:
            yield
        finally:
            for table, old in zip(tables, before, strict=True):
                _put_back(table, old)
            with torch.no_grad():
                for tensor, data, values in saved.values():
                    if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                        tensor.data = data
                    if not _same(tensor, values):
                        tensor.data.copy_(values)


def _put_back(table: Any, old: Mapping[str, Any]) -> None:
    for name in [name for name in table.keys() if name not in old]:  # noqa: SIM118  (a ScriptModule's table)
        del table[name]
    for name, value in old.items():
        if name not in table or table[name] is not value:
            table[name] = value


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in walk_tensors(model).values():
        if not nn.parameter.is_lazy(tensor):
            yield tensor


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if two tensors of one shape hold the same values, NaN included."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


@contextmanager
def random_states(model: nn.Module) -> Iterator[None]:
    """Restores, at exit, the random number generators of Python, NumPy and PyTorch, also of the model's devices."""
    devices = {p.device for _, p in walk_parameters(model) if p.is_cuda} if torch.cuda.is_initialized() else set()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Seeds all random number generators, and restores their states at exit."""
    with random_states(model):
        random.seed(seed)
        np.random.seed(seed)
        seed_pytorch(seed)
        yield


def seed_pytorch(seed: int) -> None:
    """Seeds PyTorch's random number generators, as `torch.manual_seed` does.

    Without a GPU, `torch.manual_seed` formats the stack of calls for each kind of device, which takes a millisecond.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def copied_model(model: nn.Module, *, share: bool = False) -> nn.Module:
    """Copies a model, as `copy.deepcopy` does but faster.

    Args:
        model: the model.
        share: True to let the copy's parameters use the memory of the model's, which saves time. `SharedMemory`
            guards it.

    Raises:
        Exception: of any class, if `copy.deepcopy` cannot copy it: it holds, for example, a lock or an open file.
    """
    memo: dict[int, Any] = {}
    for _, parameter in walk_parameters(model) if share else ():
        if type(parameter) is nn.Parameter:
            memo[id(parameter)] = copied = nn.Parameter(parameter.data, parameter.requires_grad)
            if parameter.__dict__:  # attributes that other code set
                copied.__dict__.update(parameter.__dict__)
    for module in walk_modules(model):
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:  # computed by a hook, such as `weight_norm`'s
                memo[id(value)] = value.detach().clone()
    for buffer in _simple_buffers(model):
        memo[id(buffer)] = buffer.clone()
    return copied_modules(model, memo)


def _simple_buffers(model: nn.Module) -> list[torch.Tensor]:
    """Returns the buffers whose clone is their copy: contiguous, without a gradient, with memory of their own."""
    simple = [
        b
        for _, b in walk_buffers(model)
        if type(b) is torch.Tensor and b.layout == torch.strided and not b.requires_grad
    ]
    used = Counter(buffer.untyped_storage().data_ptr() for buffer in simple)
    return [b for b in simple if b.is_contiguous() and not vars(b) and used[b.untyped_storage().data_ptr()] == 1]


class SharedMemory:
    """Restores the parameters whose memory copies of a model share, where an operation has written into it.

    A dispatch mode that is active while a copy runs must call `before_write`.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module):
        self._sharing: dict[int, list[torch.Tensor]] = {}
        for _, parameter in walk_parameters(model):
            if parameter.layout == torch.strided and not nn.parameter.is_lazy(parameter):
                self._sharing.setdefault(parameter.untyped_storage().data_ptr(), []).append(parameter)
        self._saved: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def written(self) -> bool:
        """True if an operation has written into the memory."""
        return bool(self._saved)

    def before_write(self, tensor: torch.Tensor) -> None:
        """Saves what an operation is about to overwrite."""
        if tensor.layout == torch.strided:
            for parameter in self._sharing.pop(tensor.untyped_storage().data_ptr(), ()):
                self._saved.append((parameter, parameter.detach().clone()))

    def restore(self) -> None:
        """Puts back what was overwritten, and lets go of the parameters."""
        with torch.no_grad():
            for parameter, values in self._saved:
                parameter.data.copy_(values)
        self._saved.clear()
        self._sharing.clear()


@contextmanager
def own(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Gives a model, while active, copies of some of its parameters and buffers in their place."""
    replaced = replace_by_copies(model, names)
    try:
        yield
    finally:
        for table, name, tensor in replaced:
            table[name] = tensor


def replace_by_copies(model: nn.Module, names: Iterable[str]) -> list[tuple[Any, str, torch.Tensor]]:
    """Replaces parameters and buffers by copies; returns (table, name, former tensor) of each."""
    state = walk_tensors(model)
    wanted = {id(state[name]) for name in names if name in state}
    copies: dict[int, torch.Tensor] = {}
    replaced = []
    for module in walk_modules(model):
        tables: tuple[Any, Any] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if id(tensor) in wanted:
                    if id(tensor) not in copies:
                        copies[id(tensor)] = _twin(tensor)
                    replaced.append((table, name, tensor))
                    table[name] = copies[id(tensor)]
    return replaced


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a new parameter or buffer of the same values, which training can use."""
    with torch.no_grad():
        values = tensor.detach().clone()
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


class _Outside(threading.local):
    depth = 0


_outside = _Outside()
_enter_of_pytorch = torch.inference_mode.__enter__
_lock = threading.Lock()
_users = 0


def _enter(self: Any) -> None:
    """Enters `torch.inference_mode`, unless this thread is within `outside_inference_mode`: then it has no effect."""
    if _outside.depth:
        self._inference_mode_context = nullcontext()
    else:
        _enter_of_pytorch(self)


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Leaves `torch.inference_mode` and gives it no effect in this thread, also inside the model's code.

    In inference mode PyTorch does not decompose operations such as `conv2d` for a dispatch mode, tracks no views and
    makes tensors that training cannot use. The mode of gradients stays as it is.
    """
    global _users
    inside = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with_gradients = torch.is_grad_enabled()
    with inside, torch.set_grad_enabled(with_gradients):
        with _lock:
            _users += 1
            setattr(torch.inference_mode, "__enter__", _enter)  # noqa: B010  (mypy refuses the assignment)
        _outside.depth += 1
        try:
            yield
        finally:
            _outside.depth -= 1
            with _lock:
                _users -= 1
                if not _users:
                    setattr(torch.inference_mode, "__enter__", _enter_of_pytorch)  # noqa: B010


def leave_inference(model: nn.Module) -> None:
    """Replaces, in place, parameters and buffers made in inference mode by tensors that training can use."""
    made = {id(tensor) for tensor in _tensors(model) if tensor.is_inference()}
    state = walk_tensors(model)
    replace_by_copies(model, [name for name, tensor in state.items() if id(tensor) in made])
