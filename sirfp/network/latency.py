"""How long one call of each of several models takes, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .forward import call, inference


@dataclass(frozen=True)
class Latency:
    """The time of one call in seconds.

    Attributes:
        median: the middle of all repeats.
        low: the quarter of repeats below which the fastest lie.
        high: the quarter above which the slowest lie.
        repeats: how many calls were timed.
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
    threads: int | None = None,
) -> dict[str, Latency]:
    """Times models in turns, a call of each in every round, so that whatever else runs hits all alike.

    Args:
        models: {name: (model, what it is called with)}.
        warmup: rounds that do not count.
        repeats: rounds that do.
        threads: processor threads of PyTorch meanwhile; as they are by default.

    Returns:
        {name: its latency}, each model in evaluation mode and without gradients.
    """
    calls = {name: lambda model=model, inputs=inputs: _time(model, inputs) for name, (model, inputs) in models.items()}
    return in_turns(calls, warmup=warmup, repeats=repeats, threads=threads)


def in_turns(
    calls: Mapping[str, Callable[[], float]],
    *,
    warmup: int = 2,
    repeats: int = 11,
    threads: int | None = None,
) -> dict[str, Latency]:
    """The same of anything that returns the seconds it took; see `measure`."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"at least one repeat and no negative warm-up are needed, got {repeats} and {warmup}")
    before = torch.get_num_threads()
    times: dict[str, list[float]] = {name: [] for name in calls}
    try:
        torch.set_num_threads(threads or before)
        for turn in range(warmup + repeats):
            for name, timed in calls.items():
                seconds = timed()
                if turn >= warmup:
                    times[name].append(seconds)
    finally:
        torch.set_num_threads(before)
    return {name: _summary(values) for name, values in times.items()}


def _time(model: nn.Module, inputs: Any) -> float:
    wait = synchronizer(model)
    with inference(model):
        wait()
        start = time.perf_counter()
        call(model, inputs)
        wait()
        return time.perf_counter() - start


def synchronizer(model: nn.Module) -> Callable[[], None]:
    """What waits until the model's device has done all that it was given."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def _summary(values: list[float]) -> Latency:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Latency(statistics.median(values), low, high, len(values))
