"""Comparison of networks in several runtimes: the order of calls, and runtimes that cannot run a network."""

from torch import nn

from sirfp.errors import InputError
from sirfp.exporting import runtimes


def test_a_runtime_has_been_timed_before_the_next_one_starts(tmp_path, monkeypatch):
    """PyTorch's threads spin for some time after a call, and would slow a network that onnxruntime runs next."""
    called = []

    def prepare(runtime, model, inputs, folder, threads):
        if runtime == "compiled":
            raise InputError("compiled: no compiler")
        return lambda: called.append((runtime, inputs))

    monkeypatch.setattr(runtimes, "prepare_call", prepare)
    networks = {"dense": (nn.Identity(), 1), "pruned": (nn.Identity(), 2)}
    given = dict.fromkeys(("eager", "compiled", "onnxruntime"), networks)
    times, failed = runtimes.compare(given, tmp_path, warmup=1, repeats=3)
    assert called == [("eager", 1), ("eager", 2)] * 4 + [("onnxruntime", 1), ("onnxruntime", 2)] * 4
    assert {name: list(found) for name, found in times.items()} == dict.fromkeys(("eager", "onnxruntime"), [*networks])
    assert times["eager"]["dense"].repeats == 3 and failed == {"compiled": "compiled: no compiler"}
