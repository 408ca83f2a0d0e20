"""The latency profile: FLOPs of parts, reading onnxruntime's profile, and the column "over"."""

import json

import pytest
import torch
from scripts import loaded
from torch import nn

from sirfp.exporting import missing_packages

X = torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def script():
    with loaded("benchmarks/latency_profile.py") as module:
        yield module


def network(width):
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 1, 1, groups=2), nn.Conv2d(width, 8, 3, 1, 1)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(8 * 16, 5)).eval()


def test_flops_are_of_kernels_on_maps_and_of_products(script):
    assert script.part_flops(network(4), X) == {
        "3 x 3 on 8 x 8": 16 * 4 * 3 * 9,
        "3 x 3 on 4 x 4": 16 * (4 * 2 + 8 * 4) * 9,
        "matrix products": 8 * 16 * 5,
    }


def event(name, operator, given, made, microseconds):
    types = {"input_type_shape": [{"float": shape} for shape in given], "output_type_shape": [{"float": made}]}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": operator, **types}}


def test_an_onnxruntime_profile_is_read_without_its_first_calls(script, tmp_path):
    events = [{"cat": "Session", "name": "model_loading", "dur": 10**9}]
    for turn, scale in enumerate((1000, 1000, 1, 3, 2)):
        assert turn >= script.WARMUP or scale == 1000
        events += [
            event("a", "Conv", [[1, 16, 4, 4], [32, 16, 3, 3]], [1, 32, 4, 4], 10 * scale),
            event("b", "Add", [[1, 32, 4, 4], [1, 32, 4, 4]], [1, 32, 4, 4], 4 * scale),
            event("c", "Gemm", [[1, 32], [5, 32], [5]], [1, 5], 1 * scale),
            {"cat": "Session", "name": "model_run", "dur": 16 * scale},
        ]
    (tmp_path / "profile.json").write_text(json.dumps(events))
    found = script.read_profile(tmp_path / "profile.json", 5)
    assert found.seconds == pytest.approx({"3 x 3 on 4 x 4": 2e-5, "Add": 8e-6, "matrix products": 2e-6, "rest": 2e-6})
    assert found.computed == {"3 x 3 on 4 x 4": 16 * 32 * 16 * 9, "matrix products": 5 * 32}
    assert found.operators == {"Conv": 1, "Add": 1, "Gemm": 1}


def test_what_parts_take_over_their_share_adds_up(script):
    dense = script.Profile({"a": 0.6, "Add": 0.3, "rest": 0.1}, {"a": 100}, {"Conv": 1})
    small = script.Profile({"a": 0.3, "Add": 0.2, "Reorder": 0.05}, {"a": 50}, {"Conv": 1, "Reorder": 1})
    row = script.compared(dense, small, {"a": 100}, {"a": 40})
    over = {part["part"]: part["over"] for part in row["parts"]}
    assert over == pytest.approx({"a": 0.06, "Add": 0.08, "Reorder": 0.05, "rest": -0.04})
    assert sum(over.values()) == pytest.approx(0.55 - 0.4) and row["computed"] == 0.5 and row["flops_kept"] == 0.4
    text = script.table(row | {"network": "round to 8"}).markdown()
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["Add", "a", "Reorder", "rest", "all"]
    assert "Reorder 1" in script.calls(row)


@pytest.mark.parametrize("runtime", ["onnxruntime", "eager"])
def test_both_profilers_see_the_parts(script, runtime, tmp_path, monkeypatch):
    if runtime == "onnxruntime" and missing_packages():
        pytest.skip(f"needs {', '.join(missing_packages())}")
    args = type("Args", (), {"repeats": 2, "threads": 1})
    find = script.in_onnxruntime if runtime == "onnxruntime" else script.in_pytorch
    found = find(runtime, {"dense": network(16), "round to 8": network(8)}, X, tmp_path, args)
    for key, width in (("dense", 16), ("round to 8", 8)):
        assert set(script.part_flops(network(width), X)) <= set(found[key].seconds)
        assert sum(found[key].seconds.values()) > 0 and sum(found[key].operators.values()) >= 4
