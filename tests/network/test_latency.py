"""Timing in turns."""

from sirfp.network.latency import MOST, in_turns


def test_short_calls_are_timed_more_often():
    calls = {"a": iter([0.01] * 1000).__next__, "b": iter([0.03] * 1000).__next__}
    assert in_turns(calls, warmup=1, repeats=3, seconds=0.4)["a"].repeats == 10
    assert in_turns(calls, warmup=1, repeats=3)["b"].repeats == 3
    assert in_turns(calls, warmup=0, repeats=3, seconds=1e9)["b"].repeats == MOST
