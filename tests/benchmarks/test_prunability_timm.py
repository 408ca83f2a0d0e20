"""A part of the table of timm's networks, and pruned files that are loaded in a new process."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import timm
import torch
from marks import slow_but
from safetensors.torch import load_file, save_file
from scripts import loaded

import sirfp

LOAD = """
import sys, timm, torch, sirfp
from safetensors.torch import load_file, save_file
folder, *names = sys.argv[1:]
for name in names:
    model = timm.create_model(name).eval()
    sirfp.load(f"{folder}/{name}.safetensors", model)
    with torch.no_grad():
        save_file({"y": model(load_file(f"{folder}/{name}_x.safetensors")["x"])}, f"{folder}/{name}_y.safetensors")
"""


NETWORKS = [
    "test_resnet", "mobilenetv3_small_050", "skresnet18", "ghostnet_050", "test_vit", "test_convnext", "test_nfnet",
]  # fmt: skip


@pytest.fixture(scope="module")
def benchmark():
    with loaded("benchmarks/prunability_timm.py") as module:
        import prunability_table

        yield module, prunability_table


@pytest.mark.parametrize("name", slow_but(NETWORKS, "test_resnet", "test_vit", "test_nfnet"))
def test_a_network_is_pruned_to_half_and_runs(benchmark, name):
    row = {"tool": "sirfp", "module": name, "model": name, **benchmark[0].prune_by_sirfp(*subject(benchmark[0], name))}
    assert benchmark[1].good(row) and 0.45 < row["kept"] <= 0.5005, row
    assert name in benchmark[1].table({("sirfp", name): row})


def test_another_network_of_a_module_is_drawn(benchmark, tmp_path):
    timm_benchmark, tables = benchmark
    drawn = timm_benchmark.drawn(["shvit"], 30, tmp_path / "networks.json")
    sizes = timm_benchmark.parameters("shvit")
    assert drawn == timm_benchmark.drawn([], 0, tmp_path / "networks.json")  # the file is read again
    assert drawn["shvit"] in sizes and sizes[drawn["shvit"]] > min(sizes.values())
    row = {"model": "shvit_s2", "params": 3.7e6, "error": "it fails"}
    assert tables.network_rows({("sirfp", "shvit"): row})[-1] == "| shvit_s2 | 3.7 |  |  | fails: it fails |  |"


def subject(benchmark, name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.default_cfg["input_size"] if name == "test_vit" else (3, 96, 96)  # a transformer has one size
    return benchmark.randomised(model), torch.randn(1, *size)


@pytest.mark.slow
def test_a_pruned_file_is_the_same_network_in_a_fresh_process(tmp_path):
    wanted = {}
    for name in ("test_resnet", "test_vit"):
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        x = torch.randn(2, *model.default_cfg["input_size"])
        sirfp.save(tmp_path / f"{name}.safetensors", model, sirfp.prune(model, x[:1], "magnitude", 0.5))
        save_file({"x": x}, tmp_path / f"{name}_x.safetensors")
        with torch.no_grad():
            wanted[name] = model(x)
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})"
    subprocess.run([sys.executable, "-c", threads + LOAD, str(tmp_path), *wanted], check=True)
    for name, y in wanted.items():
        assert torch.equal(y, load_file(tmp_path / f"{name}_y.safetensors")["y"])


@pytest.mark.parametrize(
    ("what", "says"),
    [(lambda: os._exit(3), "ended with 3"), (lambda: time.sleep(60), "more than 1 s"), (lambda: 1 / 0, "ZeroDivision")],
    ids=["crash", "slow", "error"],
)
def test_a_network_that_ends_badly_is_a_row_of_its_own(benchmark, monkeypatch, what, says):
    monkeypatch.setattr(benchmark[0], "measure", lambda tool, network: what())
    args = SimpleNamespace(seconds=1 if "more" in says else 30, memory=64, threads=1)
    assert says in benchmark[0].in_process("sirfp", "resnet", "test_resnet", args)["error"]


class Token(torch.nn.Module):
    """A parameter is the input of a module, as the class tokens of CaiT and PiT are."""

    def __init__(self):
        super().__init__()
        self.token, self.body = torch.nn.Parameter(torch.zeros(1, 4)), torch.nn.Linear(4, 8)
        self.frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        return self.body(x) + self.body(self.token)


def test_counting_for_torch_pruning_does_not_fail_on_tokens(benchmark):
    model = Token()
    assert benchmark[0].counted_flops(model, torch.randn(3, 4)) == (3 + 1) * 4 * 8
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
