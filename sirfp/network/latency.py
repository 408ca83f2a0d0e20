"""Measures the latency of several models by calling them in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from .forward import call, inference
from .untouched import copied_inputs

T = TypeVar("T")
MOST = 101
"""Largest number of rounds that are counted because they are short. More add no information."""


@dataclass(frozen=True)
class Latency:
    """The time of one call, in seconds.

    Attributes:
        median: the median of all timed calls.
        low: the lower quartile.
        high: the upper quartile.
        repeats: the number of timed calls.
    """

    median: float
    low: float
    high: float
    repeats: int


def measure(
    models: Mapping[str, tuple[nn.Module, Any]],
    *,
    warmup: int = 2,
    repeats: int = 11,
    seconds: float = 0.0,
    threads: int | None = None,
) -> dict[str, Latency]:
    """Times models in turns: each round calls every model once. Thus other load on the machine slows all models alike.

    Models run in evaluation mode and without gradients.

    Args:
        models: {name: (model, its inputs)}.
        warmup: number of rounds at the start that are not counted.
        repeats: number of rounds that are counted.
        seconds: further rounds are counted until their calls have taken so many seconds, at most `MOST` rounds in all.
            A few calls of a small network say little on a machine that does other work.
        threads: number of PyTorch's CPU threads during the measurement; unchanged by default.

    Returns:
        {name: latency}.

    Raises:
        ValueError: `repeats` is below 1 or `warmup` negative.
    """
    calls = {name: partial(timed_call, model, inputs) for name, (model, inputs) in models.items()}
    return in_turns(calls, warmup=warmup, repeats=repeats, seconds=seconds, threads=threads)


def in_turns(
    calls: Mapping[T, Callable[[], float]],
    *,
    warmup: int = 2,
    repeats: int = 11,
    seconds: float = 0.0,
    threads: int | None = None,
) -> dict[T, Latency]:
    """Times functions in turns; each returns the time of its own call in seconds. See `measure` for the arguments."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    before = torch.get_num_threads()
    times: dict[T, list[float]] = {name: [] for name in calls}
    try:
        torch.set_num_threads(threads or before)
        for turn in range(warmup + max(repeats, MOST)):
            if turn >= warmup + repeats and sum(map(sum, times.values())) >= seconds:
                break
            for name, timed in calls.items():
                spent = timed()
                if turn >= warmup:
                    times[name].append(spent)
    finally:
        torch.set_num_threads(before)
    return {name: _summary(values) for name, values in times.items()}


def timed_call(model: nn.Module, inputs: Any) -> float:
    """Calls a model in evaluation mode, without gradients; returns the seconds until its device has finished."""
    wait = synchronizer(model)
    with inference(model):
        given = copied_inputs(inputs)
        wait()
        start = time.perf_counter()
        call(model, given, copied=True)
        wait()
        return time.perf_counter() - start


def synchronizer(model: nn.Module) -> Callable[[], None]:
    """Returns a function that waits until the model's device has finished all queued work."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _summary(values: list[float]) -> Latency:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Latency(statistics.median(values), low, high, len(values))
