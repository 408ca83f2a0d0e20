"""Tables and latency."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from sirfp.network import latency
from sirfp.reporting import tables
from sirfp.structure.plan import PruningPlan

PLAN = PruningPlan(
    kept={"a": (0, 2), "b": (1,)},
    channels={"a": 4, "b": 1},
    places={"a": ("a.weight", 0), "b": ("b.weight", 0)},
    flops=(4_130_000_000, 2_065_000_000),
    params=(25_560_000, 10_224_000),
    criterion="random",
)
STAGES = {
    "dense": {"metrics": {"sem_seg/mIoU": 70.5, "x/AP": 1.0}, "flops": 10**9, "params": 10**6, "latency": 0.02},
    "pruned": {"metrics": {"sem_seg/mIoU": 7.25}, "flops": 4 * 10**8, "params": 5 * 10**5, "latency": 0.01},
}


def test_summary_says_what_the_plan_says():
    found = tables.summary(PLAN)
    assert (found.kept_flops, found.kept_params) == (0.5, 0.4)
    assert found.widths == (tables.Width("a", 2, 4), tables.Width("b", 1, 1))
    assert found.to_dict()["flops"] == {"dense": 4_130_000_000, "pruned": 2_065_000_000, "kept": 0.5}


def test_stages_in_markdown():
    lines = tables.stages(STAGES, ["sem_seg/mIoU"]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in lines}) == 1
    assert cells[0] == ["network", "mIoU", "GFLOPs", "kept", "M params", "kept", "latency, ms"]
    assert cells[2] == ["dense", "70.50", "1.00", "100.0%", "1.00", "100.0%", "20.0"]
    assert cells[3] == ["pruned", "7.25", "0.4", "40.0%", "0.5", "50.0%", "10.0"]


def test_all_metrics_by_default_and_gaps_are_dashes():
    header, _, _, pruned = (line.strip("|").split("|") for line in tables.stages(STAGES).splitlines())
    assert [cell.strip() for cell in header[1:3]] == ["mIoU", "AP"]
    assert [cell.strip() for cell in pruned[1:3]] == ["7.25", "-"]


def test_metrics_of_the_same_name_keep_their_task():
    table = tables.comparison([tables.Row("dense", 1, 1, {"bbox/AP": 1.0, "segm/AP": 2.0})])
    assert table.columns[1:3] == ("bbox/AP", "segm/AP")


@pytest.mark.parametrize(("count", "text"), [(44_700_000, "44.7 MB"), (2_000, "2.0 kB"), (12, "12 bytes")])
def test_size(count, text):
    assert tables.size(count) == text


class Sleeper(nn.Module):
    def __init__(self, seconds: float, calls: list):
        super().__init__()
        self.seconds, self.calls = seconds, calls

    def forward(self, x):
        self.calls.append((self.seconds, torch.get_num_threads(), self.training, torch.is_grad_enabled()))
        time.sleep(self.seconds)
        return x


def test_latency_takes_turns_and_restores_threads():
    calls, threads = [], torch.get_num_threads()
    slow, fast = Sleeper(0.02, calls), Sleeper(0.001, calls)
    found = latency.measure(
        {"slow": (slow, torch.zeros(1)), "fast": (fast, torch.zeros(1))}, warmup=1, repeats=3, threads=1
    )
    assert [seconds for seconds, *_ in calls] == [0.02, 0.001] * 4
    assert {rest for _, *rest in map(tuple, calls) for rest in [tuple(rest)]} == {(1, False, False)}
    assert found["slow"].low <= found["slow"].median <= found["slow"].high
    assert found["slow"].median > found["fast"].median and found["slow"].repeats == 3
    assert torch.get_num_threads() == threads and slow.training
