"""A project outside this repository trains, prunes and works with the commands, without a change in sirfp."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import subprocess
import sys

import pytest
from fourth_project import make_project
from registrations import temporary
from tiny_tasks import make_data

from sirfp.checkpoint import read
from sirfp.cli import main
from sirfp.config import projects

CONFIG = ["--config-file", "share/configs/squares.yaml"]
OWN = [
    "SIRFP.CRITERION", "first",
    "SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Note']", "SIRFP.NOTE", "seen",
]  # fmt: skip
"""A criterion, and a hook with a config key of its own, which `parts.py` adds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The project and its data, trained and pruned with a criterion and a hook that it imports."""
    root = make_project(make_data(tmp_path_factory.mktemp("user")))
    train(root, 1)
    return root


@pytest.fixture(autouse=True)
def registrations_end(folder):
    """Has what a test imports from the project forgotten afterwards."""
    with temporary(folder):
        yield


def train(root, processes):
    """Trains and prunes in a process of its own; writes to `out_<processes>`.

    A single process is forked: a new one would import for longer than it trains.
    """
    words = ["share/train_net.py", "--import", "parts.py", *CONFIG, "--num-processes", str(processes), *OWN]
    words += ["OUTPUT_DIR", f"out_{processes}"]
    if processes > 1:
        ended = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        return
    child = multiprocessing.get_context("fork").Process(target=run_script, args=(root, words))
    child.start()
    child.join(300)
    assert child.exitcode == 0


def run_script(root, words):
    """Runs a script in its folder as Python would."""
    os.chdir(root)
    sys.argv, sys.path[:0] = words, [str(root / words[0].partition("/")[0])]
    runpy.run_path(words[0], run_name="__main__")


def test_it_trains_and_prunes(folder):
    plan, _ = read(folder / "out_1/pruned.safetensors")
    assert plan.flops[1] <= 0.5 * plan.flops[0]
    assert "PROJECT: share" in (folder / "out_1/config.yaml").read_text()


def test_commands_know_its_keys_once_its_code_is_imported(folder, monkeypatch, capsys):
    def told(command, *words):
        assert main([command, "--import", "share/train_net.py", *words, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    monkeypatch.chdir(folder)
    narrow = told("report", *CONFIG)
    wide = told("report", "--import", "parts.py", "--config-file", "out_1/config.yaml", "MODEL.SHARE.WIDTH", "16")
    assert narrow["size"] == [64, 64] and wide["networks"][0]["params"] > 2 * narrow["networks"][0]["params"]
    pruned = told("prune", *CONFIG, "--criterion", "magnitude", "--keep-flops", "0.5", "-o", "shot.safetensors")
    assert pruned["flops"]["kept"] <= 0.5
    assert told("verify", *CONFIG, "shot.safetensors")["equal"]


def test_without_its_code_a_line_says_what_to_give(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(projects, "PROJECTS", {})
    assert main(["report", *CONFIG]) == 2
    said = capsys.readouterr().err
    assert "the code of project 'share' is not imported; use --import FILE" in said and said.count("\n") == 1


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_imports_a_criterion_and_a_hook_in_every_process(folder, processes):
    """The hook has its own config key."""
    if processes > 1:
        train(folder, processes)
    out = folder / f"out_{processes}"
    plan, _ = read(out / "pruned.safetensors")
    assert plan.cuts and all(cut.keep == tuple(range(len(cut.keep))) for cut in plan.cuts)
    assert [(out / f"note_{rank}.txt").read_text() for rank in range(processes)] == ["seen"] * processes
