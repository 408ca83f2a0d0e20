"""Keeps the inputs of a model's last calls in training, to look at them again when the model is cut."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from .untouched import copied_inputs


class LastInputs:
    """Keeps copies of the inputs of the last calls.

    Args:
        model: the model, without a wrapper.
        most: the number of calls whose inputs are kept.

    Attributes:
        batches: the inputs, in the form that `sirfp.network.forward.call` takes, the latest last.
    """

    def __init__(self, model: nn.Module, most: int):
        self.model = model
        self.batches: deque[Any] = deque(maxlen=most)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """While active, keeps the inputs of calls in training mode.

        Those of a step that raises an error are dropped: they may be what the model cannot be run on, for want of
        memory too.
        """
        before = tuple(self.batches)
        handle = self.model.register_forward_pre_hook(self._keep, with_kwargs=True)
        try:
            yield
        except BaseException:
            self.batches = deque(before, maxlen=self.batches.maxlen)
            raise
        finally:
            handle.remove()

    def _keep(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and self.batches.maxlen:
            self.batches.append(copied_inputs(as_inputs(model, args, kwargs)))


def as_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Returns the arguments of a call in the form that `sirfp.network.forward.call` takes.

    Args:
        model: the model that is called; it names positional arguments where there are others too.
        args, kwargs: the arguments.
    """
    if not kwargs:
        return args[0] if len(args) == 1 else args
    if not args:
        return dict(kwargs)
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    kinds = {name: parameter.kind for name, parameter in bound.signature.parameters.items()}
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if kinds[name] is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kinds[name] is not inspect.Parameter.VAR_POSITIONAL:
            named[name] = value
    return named
