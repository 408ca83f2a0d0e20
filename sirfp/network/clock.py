"""The runtime in which a budget of latency is measured: PyTorch, or another one behind the same three functions."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
LAYER_CALLS = 5
"""Timed calls for the times of layers, after one warm-up call."""


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
    def layers(self, model: nn.Module, inputs: Any, names: Mapping[str, Any]) -> np.ndarray:
        """Returns the median seconds of each layer in one call and, last, of all else, (layers + 1,).

        Args:
            names: the names of the layers, as keys. No layer is inside another one.
            model, inputs: as in `prepare`.
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


@dataclass(frozen=True)
class PyTorchClock(Clock):
    """PyTorch in eager mode, in the precision of the weights, with PyTorch's present number of threads."""

    words = "PyTorch"

    def prepare(self, model: nn.Module, inputs: Any) -> Callable[[], float]:
        return lambda: timed_call(model, inputs)

    def layers(self, model: nn.Module, inputs: Any, names: Mapping[str, Any]) -> np.ndarray:
        wait, spent = synchronizer(model), dict.fromkeys(names, 0.0)
        began: dict[str, float] = {}

        def start(name: str) -> Callable[..., None]:
            def before(*_):
                wait()
                began[name] = time.perf_counter()

            return before

        def stop(name: str) -> Callable[..., None]:
            def after(*_):
                wait()
                spent[name] += time.perf_counter() - began[name]

            return after

        handles = []
        for name in names:
            module = model.get_submodule(name)
            handles += [module.register_forward_pre_hook(start(name)), module.register_forward_hook(stop(name))]
        rows = []
        with inference(model):
            for _ in range(LAYER_CALLS + 1):
                spent.update(dict.fromkeys(names, 0.0))
                given = copied_inputs(inputs)
                wait()
                first = time.perf_counter()
                call(model, given, copied=True)
                wait()
                total = time.perf_counter() - first
                rows.append([*spent.values(), total - sum(spent.values())])
        for handle in handles:
            handle.remove()
        return np.array([statistics.median(column) for column in zip(*rows[1:], strict=True)])


IN_PYTORCH = PyTorchClock()
