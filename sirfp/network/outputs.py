"""Lets a model return only a part of its outputs while it is pruned, such as `lambda out: out.logits`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from torch import nn

from ..errors import InputError, first_line
from .forward import tensors

Outputs = Callable[[Any], Any]
"""`outputs(out)` returns the part of a model's output that counts."""

_everything: ContextVar[bool] = ContextVar("everything", default=False)


@contextmanager
def only(model: nn.Module, outputs: Outputs | None) -> Iterator[None]:
    """Lets a model, and copies that are made of it meanwhile, return a part of their outputs.

    Channels of the other outputs can then be removed, and only the part is compared.

    Args:
        model: the plain network.
        outputs: takes the part out of the model's output; None for all.

    Raises:
        InputError: `outputs` is no function, fails on the output in evaluation mode, or returns no tensor.
    """
    if outputs is None:
        yield
        return
    if not callable(outputs):
        raise InputError(
            f"outputs must be a function of the model's output, such as lambda out: out.logits, got {outputs!r:.80}"
        )
    handle = model.register_forward_hook(_selector(outputs))
    try:
        yield
    finally:
        handle.remove()


def _selector(outputs: Outputs) -> Callable[[nn.Module, Any, Any], Any]:
    def select(module: nn.Module, inputs: Any, output: Any) -> Any:
        if _everything.get():
            return None
        try:
            part = outputs(output)
        except Exception as error:  # the user's function may raise anything
            if module.training:  # it may return something else in training, such as losses
                return None
            kind = type(output).__name__
            raise InputError(f"outputs fails on the model's output, {kind}: {first_line(error)}") from error
        if next(tensors(part), None) is None:
            raise InputError(f"outputs must return tensors of the model's output, got {type(part).__name__}")
        return part

    return select


def with_everything(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Returns a user's function, such as a loss, in which the model returns all of its outputs; None stays None."""
    if function is None:
        return None
    inner = function

    @wraps(inner)
    def called(*args: Any, **kwargs: Any) -> Any:
        token = _everything.set(True)
        try:
            return inner(*args, **kwargs)
        finally:
            _everything.reset(token)

    return called
