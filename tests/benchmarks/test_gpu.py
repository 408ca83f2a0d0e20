"""The program for a GPU runs on a processor too, with small networks."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from scripts import loaded

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--device", "cpu", "--networks", "test_resnet", "--size", "64", "64", "--batch", "2", "--rounds", "2"]


@pytest.fixture
def gpu(monkeypatch, tmp_path, capsys):
    """Runs parts of the program on the processor; returns the exit code and the figures."""
    with loaded("benchmarks/gpu.py") as module:
        monkeypatch.setattr(module, "FIRST", 4)
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # generating code takes minutes

        def run(*parts):
            file = tmp_path / "gpu.json"
            monkeypatch.setattr("sys.argv", ["gpu.py", *SMALL, "--json", str(file), "--parts", *parts])
            code = module.main()
            capsys.readouterr()
            return code, json.loads(file.read_text())

        yield run


def test_statistics_are_timed_beside_plain_steps(gpu):
    code, found = gpu("statistics")
    figures = found["statistics"]["test_resnet"]
    assert figures["step_s"] > 0 and figures["synchronisations"] == 0
    assert code == (0 if figures["within_bounds"] else 1)
    assert figures["share"] == pytest.approx(figures["update_s"] / 5 / figures["step_s"])


def test_first_iterations_after_a_cut_are_timed_and_profiled(gpu):
    _, found = gpu("pause")
    figures = found["pause"]["test_resnet, cudnn.benchmark False"]
    assert len(figures["after_start_s"]) == len(figures["after_cut_s"]) == 4
    assert any("conv" in name for name, _, _ in figures["first_after_cut"]["host"])
    assert figures["cut_s"] > 0 and not torch.backends.cudnn.benchmark


def test_latency_has_a_ratio_for_each_way_to_run(gpu):
    _, found = gpu("latency")
    figures = found["latency"]["test_resnet"]
    assert figures["flops"] <= 0.4
    for way in ("eager", "channels_last", "compiled"):
        assert figures[way]["speedup"] == pytest.approx(figures[way]["dense"] / figures[way]["pruned"])


@pytest.mark.slow
def test_two_processes_cut_the_same_channels(tmp_path):
    file = tmp_path / "gpu.json"
    words = [sys.executable, "benchmarks/gpu.py", *SMALL, "--json", str(file), "--parts", "processes"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=300)
    found = json.loads(file.read_text())
    assert found["processes"]["same_channels"] and found["processes"]["channels"] > 5


def test_without_a_gpu_the_program_says_so(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with loaded("benchmarks/gpu.py") as module, pytest.raises(SystemExit):
        monkeypatch.setattr("sys.argv", ["gpu.py"])
        module.main()
    assert "no GPU" in capsys.readouterr().err
