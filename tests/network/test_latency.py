"""Timing in turns."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from sirfp.network import clock
from sirfp.network.clock import IN_PYTORCH
from sirfp.network.latency import MOST, in_turns


def test_short_calls_are_timed_more_often():
    calls = {"a": iter([0.01] * 1000).__next__, "b": iter([0.03] * 1000).__next__}
    assert in_turns(calls, warmup=1, repeats=3, seconds=0.4)["a"].repeats == 10
    assert in_turns(calls, warmup=1, repeats=3)["b"].repeats == 3
    assert in_turns(calls, warmup=0, repeats=3, seconds=1e9)["b"].repeats == MOST


def test_layers_are_timed_in_turns_by_their_shortest_times(monkeypatch):
    """Other work interrupts each layer in another call: no call, and no median, shows the true times of all of them."""
    monkeypatch.setattr(clock, "ROUNDS", 5)
    monkeypatch.setattr(clock, "SECONDS", 0.0)
    now, called = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Timed(nn.Module):
        def __init__(self, name, seconds, undisturbed):
            super().__init__()
            self.name, self.seconds, self.undisturbed, self.calls = name, seconds, undisturbed, 0

        def forward(self, x):
            now[0] += self.seconds + (0 if self.calls == self.undisturbed else 1 + self.calls % 2)
            self.calls += 1
            called.append(self.name)
            return x

    models = [nn.Sequential(Timed(f"{i}0", 0.1 + i, 2), Timed(f"{i}1", 0.2 + i, 4)) for i in range(2)]
    for model in models:
        model.insert(1, Timed("between", 0.3, 1))  # a part of the rest, which is disturbed as layers are
    times = IN_PYTORCH.layers(models, torch.zeros(1), {"0": 2, "2": 2})
    assert times == pytest.approx(np.array([[0.1, 0.2, 0.3], [1.1, 1.2, 0.3]]))
    assert called == ["00", "between", "01", "10", "between", "11"] * 6
    assert not any(part._forward_hooks or part._forward_pre_hooks for model in models for part in model)
