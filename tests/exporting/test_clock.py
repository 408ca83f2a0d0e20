"""Latency in onnxruntime: the times of layers, the comparison of networks, a budget in Python and in a run's config."""

import pickle
import time

import pytest
import torch
from torch import nn

import sirfp
from sirfp.budget import latency
from sirfp.budget.target import Flops, Latency, Target
from sirfp.cli import main
from sirfp.config import load_config
from sirfp.errors import InputError
from sirfp.exporting.clock import OnnxRuntimeClock, clock_named
from sirfp.hooks.pruning import timed_in
from sirfp.network import clock as timing
from sirfp.training.schedule import Schedule

pytest.importorskip("onnxruntime")
X = torch.rand(1, 3, 96, 96)


class Block(nn.Module):
    """A wide layer between narrow ones, an addition that onnxruntime joins to a convolution, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 256, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(256)
        self.back = nn.Conv2d(256, 16, 3, padding=1)
        self.end = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.back(self.norm(self.wide(x)).relu())).relu()
        return self.end(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Block().train()


def test_layers_have_the_time_of_their_operators(model):
    names = dict.fromkeys(["stem", "wide", "norm", "back", "end"], 2)
    (*each, rest), _ = OnnxRuntimeClock(1).layers([model, model], X, names)
    spent = dict(zip(names, each, strict=True))
    assert min(spent["stem"], spent["wide"], spent["back"], spent["end"]) > 0
    assert spent["norm"] == 0, "it is a part of the convolution before it"
    assert min(spent["wide"], spent["back"]) > 2 * spent["stem"] > 2 * spent["end"], "16 and 256 channels, 3 and 16"
    assert rest < sum(each), "the joined addition is the convolution's"
    assert model.training and model.norm.training


def test_a_smaller_network_is_faster_and_the_same_one_is_not(model, monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.5)
    small = Block()
    small.wide, small.norm, small.back = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, 1, 1)
    compare = OnnxRuntimeClock(1).against(model, X)
    dense, cut = compare(small)
    assert cut < 0.6 * dense
    one, two = compare(model)
    assert two == pytest.approx(one, rel=0.3)


@pytest.mark.slow
def test_no_thread_spins_after_a_run(model):
    """It would take a core from the network that is timed next; onnxruntime's threads usually do, for some 50 ms."""
    once = OnnxRuntimeClock(threads=2).prepare(model, X)
    for _ in range(3):
        once()
    before = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - before < 0.02


def test_a_budget_is_met_in_onnxruntime(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.5)
    monkeypatch.setattr(latency, "CLOSE", 0.1)  # multiples of 16 leave few latencies to choose from
    torch.manual_seed(0)
    model = Block()
    plan = sirfp.prune(model, X, "magnitude", keep_latency=0.7, clock=OnnxRuntimeClock(1), round_to=16)
    assert plan.latency[1] / plan.latency[0] == pytest.approx(0.7, rel=0.2)
    assert plan.flops[1] < 0.9 * plan.flops[0]


@pytest.mark.slow
def test_detectors_of_detectron2_are_timed_as_they_are_exported():
    pytest.importorskip("detectron2")
    from small_models import retinanet

    network = retinanet().model
    images = [{"image": torch.rand(3, 64, 64) * 255}]
    name = next(n for n, m in network.named_modules() if n.startswith("head") and isinstance(m, nn.Conv2d))
    (each,) = OnnxRuntimeClock(1).layers([network], images, {name: 2})
    assert each[0] > 0


def test_what_onnxruntime_cannot_time_is_said(model):
    with pytest.raises(InputError, match="not with .*: give OnnxRuntimeClock a graph"):
        OnnxRuntimeClock().prepare(model, {"x": X})
    with pytest.raises(InputError, match="onnxruntime is to time a budget of latency, but no such budget is given"):
        sirfp.prune(Block(), X, "magnitude", keep_flops=0.5, clock=OnnxRuntimeClock())
    with pytest.raises(InputError, match="must be pytorch or onnxruntime, got 'onnx'"):
        clock_named("onnx", "SIRFP.LATENCY_RUNTIME")


def test_a_run_times_in_the_runtime_of_its_config():
    cfg = load_config("", ["SIRFP.KEEP_LATENCY", "0.5", "SIRFP.LATENCY_RUNTIME", "onnxruntime"])
    schedule = timed_in(Schedule.from_config(cfg), cfg.SIRFP.LATENCY_RUNTIME)
    assert isinstance(schedule.keep, Latency) and isinstance(schedule.keep.clock, OnnxRuntimeClock)
    assert schedule.target(0).clock is schedule.keep.clock and schedule.keep.share == 0.5
    flops = load_config("", ["SIRFP.KEEP_FLOPS", "0.5", "SIRFP.LATENCY_RUNTIME", "onnxruntime"])
    assert timed_in(Schedule.from_config(flops), "onnxruntime").keep == Flops(0.5) == Target.from_config(flops)


@pytest.mark.slow
def test_the_command_times_in_onnxruntime(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latency, "TRIES", 2)
    model = ["--timm", "test_resnet", "--size", "64", "64", "--criterion", "magnitude"]
    budget = ["--keep-latency", "0.8", "--latency-runtime", "onnxruntime"]
    assert main(["prune", *model, *budget, "-o", str(tmp_path / "small.safetensors")]) == 0
    assert "80% of the latency" in capsys.readouterr().out


class Tokens(nn.Module):
    """A network of token numbers, which are no floats."""

    def __init__(self):
        super().__init__()
        self.embed, self.end = nn.Embedding(20, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.end(self.embed(x).mean(1))


def test_networks_of_other_precisions_and_inputs_are_timed_in_single_precision():
    narrow = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        (each,) = OnnxRuntimeClock(1).layers([narrow], X[..., :8, :8].bfloat16(), {"0": 2, "2": 2})
    assert min(each) > 0
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16} and narrow.training
    assert OnnxRuntimeClock(1).prepare(Tokens(), torch.randint(0, 20, (1, 7)))() > 0


def test_what_onnxruntime_cannot_read_is_said(tmp_path):
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no model")
    with pytest.raises(InputError, match="^onnxruntime cannot run this model: "):
        OnnxRuntimeClock(1)._session(file, X)


def test_targets_that_travel_to_other_processes_stay_equal():
    for target in (Latency(0.5), Latency(0.5, OnnxRuntimeClock(2))):
        assert pickle.loads(pickle.dumps(target)) == target
