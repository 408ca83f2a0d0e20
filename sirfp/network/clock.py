"""The runtime in which a budget of latency is measured: PyTorch, or another one behind the same three functions."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from .forward import call, inference
from .latency import Latency, in_turns, synchronizer, timed_call
from .untouched import copied_inputs

SECONDS = 2.0
"""Time of one comparison of two networks, in seconds. It takes longer if `ROUNDS` need more, and less if the networks
are so fast that the largest number of rounds (`sirfp.network.latency.MOST`) needs less."""
ROUNDS = 9
"""Minimum number of rounds of a comparison. Fewer rounds give no reliable quartile."""


class Clock(ABC):
    """A runtime that networks are timed in.

    Attributes:
        words: name of the runtime in messages.
    """

    words: ClassVar[str]

    @abstractmethod
    def prepare(self, model: nn.Module, inputs: Any) -> Callable[[], float]:
        """Prepares a model; returns a function that runs one call and returns its seconds.

        Args:
            model: the model as it is now. If it changes afterwards, the function may time either state.
            inputs: the inputs of each call.

        Raises:
            InputError: the model cannot run in this runtime.
        """

    @abstractmethod
    def layers(self, models: Iterable[nn.Module], inputs: Any, names: Mapping[str, Any]) -> np.ndarray:
        """Returns the seconds of each layer in one call of each model and, last, of all else, (models, layers + 1).

        The models are called in turns (`in_rounds`), so that other work on the machine slows all of them alike. Each
        time is the shortest of all calls: other work interrupts some layers of each call, but none in every call.

        Args:
            models: copies of one model, cut to several widths.
            names: the names of the layers, as keys. No layer is inside another one.
            inputs: as in `prepare`.
        """

    def against(self, first: nn.Module, inputs: Any) -> Callable[[nn.Module], tuple[float, float]]:
        """Prepares a model to be compared with others.

        Returns:
            A function of another model that returns the seconds of one call (of the first, of the other), timed in
            turns. Each is the lower quartile, which other work on the machine disturbs least.
        """
        ready = self.prepare(first, inputs)

        def compare(second: nn.Module) -> tuple[float, float]:
            other = ready if second is first else self.prepare(second, inputs)
            times: dict[str, Latency] = in_turns({"first": ready, "second": other}, repeats=ROUNDS, seconds=SECONDS)
            return times["first"].low, times["second"].low

        return compare


def in_rounds(calls: Sequence[Callable[[], float]]) -> int:
    """Calls functions in turns for twice `SECONDS`, after one round that warms up; each returns the seconds it took.

    Returns:
        The number of rounds, without the first.
    """
    times = in_turns(dict(enumerate(calls)), warmup=1, repeats=ROUNDS, seconds=2 * SECONDS)
    return times[0].repeats


@dataclass(frozen=True)
class PyTorchClock(Clock):
    """PyTorch in eager mode, in the precision of the weights, with PyTorch's present number of threads."""

    words = "PyTorch"

    def prepare(self, model: nn.Module, inputs: Any) -> Callable[[], float]:
        return lambda: timed_call(model, inputs)

    def layers(self, models: Iterable[nn.Module], inputs: Any, names: Mapping[str, Any]) -> np.ndarray:
        watches = [_LayerWatch(model, inputs, names) for model in models]
        in_rounds([watch.call for watch in watches])
        return np.stack([watch.shortest() for watch in watches])


class _LayerWatch:
    """Times the layers of a model in PyTorch, and what lies between two of them, by hooks."""

    def __init__(self, model: nn.Module, inputs: Any, names: Mapping[str, Any]):
        self.model, self.inputs, self.names = model, inputs, names
        self.wait = synchronizer(model)
        self.calls: list[list[tuple[str | None, float]]] = []  # (layer or None, seconds) of each part of each call

    def call(self) -> float:
        """Runs one call and returns its seconds."""
        parts: list[tuple[str | None, float]] = []
        since = 0.0

        def end_of(name: str | None) -> Callable[..., None]:
            def end(*_):
                nonlocal since
                self.wait()
                now = time.perf_counter()
                parts.append((name, now - since))
                since = now

            return end

        with ExitStack() as hooks, inference(self.model):
            for name in self.names:
                module = self.model.get_submodule(name)
                hooks.callback(module.register_forward_pre_hook(end_of(None)).remove)
                hooks.callback(module.register_forward_hook(end_of(name)).remove)
            given = copied_inputs(self.inputs)
            self.wait()
            since = time.perf_counter()
            call(self.model, given, copied=True)
            end_of(None)()
        self.calls.append(parts)
        return sum(seconds for _, seconds in parts)

    def shortest(self) -> np.ndarray:
        """Returns the sums of the shortest times of the parts, without the first call, (layers + 1,)."""
        calls = self.calls[1:]
        names = [name for name, _ in calls[0]]
        if all([name for name, _ in one] == names for one in calls):
            calls = [list(zip(names, np.min([[seconds for _, seconds in one] for one in calls], axis=0), strict=True))]
        sums = [dict.fromkeys([*self.names, None], 0.0) for _ in calls]
        for total, parts in zip(sums, calls, strict=True):
            for name, seconds in parts:
                total[name] += seconds
        return np.min([list(total.values()) for total in sums], axis=0)  # calls of other parts: the shortest sums


IN_PYTORCH = PyTorchClock()
