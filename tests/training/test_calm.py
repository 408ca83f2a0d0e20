"""A training run says little, keeps few files, and ends in one line after Ctrl-C."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch

from sirfp import engine
from sirfp.training import launch
from sirfp.training.checkpointer import Checkpointer

pytestmark = pytest.mark.usefixtures("untried")
BEGIN = "from sirfp.training.begin import begin; begin()"
"""How a `train_net.py` begins."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of the tiny task as a program: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    root = Path(tiny_run.__file__).parents[1]
    path = os.pathsep.join([str(root), str(root / "tests")])
    environment = os.environ | {"PYTHONPATH": path}
    environment.pop("PYTHONWARNINGS", None)
    code = f"{BEGIN}; import runpy; runpy.run_path({tiny_run.__file__!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, "OUTPUT_DIR", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_log_is_short_and_plain(whole):
    folder, done = whole
    log = (folder / "log.txt").read_text()
    for text in (log, done.stdout):
        assert "\x1b" not in text and "Warning" not in text
    assert 20 < log.count("\n") < 200 and done.stdout.count("\n") < 200
    assert re.search(r"sirfp \S+.*PyTorch \d", log) and "Command: tiny_run.py" in log
    assert (folder / "config.yaml").read_text().count("\n") > 300, "the config lies beside the log"


def test_libraries_do_not_warn_at_each_start(whole):
    assert whole[1].stderr == ""


def test_the_last_checkpoints_stay(whole):
    names = sorted(file.name for file in whole[0].glob("model_*.pth"))
    assert names == ["model_0000011.pth", "model_0000014.pth", "model_0000017.pth", "model_final.pth"]


@pytest.mark.parametrize(("keep", "numbers"), [(0, [2, 5, 8, 11]), (1, [11])])
def test_their_number_is_a_key(tmp_path, keep, numbers):
    plain = "SIRFP.HOOKS [] SIRFP.KEEP_FLOPS 1.0 SOLVER.MAX_ITER 12 TEST.BEST_METRIC task/score TEST.EVAL_PERIOD 6"
    tiny_run.run(tmp_path, "SOLVER.KEEP_CHECKPOINTS", str(keep), *plain.split())
    found = {file.name for file in tmp_path.glob("model_*.pth")}
    assert found == {f"model_{n:07d}.pth" for n in numbers} | {"model_final.pth", "model_best.pth"}


def test_checkpoints_of_an_abandoned_run_stay(tmp_path):
    """After going back to an early checkpoint by hand, the file just written must not count as the oldest."""
    for number in (2, 5, 8, 11):
        (tmp_path / f"model_{number:07d}.pth").touch()
    checkpointer = Checkpointer(torch.nn.Identity(), str(tmp_path))
    checkpointer.save("model_0000004", iteration=4)
    checkpointer.remove_earlier(4, 1)
    left = sorted(int(re.search(r"\d+", file.name)[0]) for file in tmp_path.glob("model_*.pth"))
    assert left == [4, 5, 8, 11] and (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"


def test_a_negative_number_is_refused(tmp_path):
    from sirfp.config.checks import validate

    with pytest.raises(ValueError, match="SOLVER.KEEP_CHECKPOINTS must be at least 0, got -1"):
        validate(tiny_run.config(tmp_path, "SOLVER.KEEP_CHECKPOINTS", "-1"))


def test_ctrl_c_says_where_it_stopped(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TINY_FAULT", "interrupt:0:10")
    with pytest.raises(SystemExit) as end:
        engine.run(tiny_run.SharedTrainer, None, tiny_run.arguments(tmp_path, "--num-gpus", "0"))
    out, err = capfd.readouterr()
    assert end.value.code == 130 and "Traceback" not in out + err
    told = "interrupted at iteration 10; the last checkpoint is model_0000008.pth: --resume goes on from it"
    assert err.splitlines()[-1] == told


def test_ctrl_c_before_the_first_checkpoint(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        launch.interrupted(1, Checkpointer(torch.nn.Identity(), str(tmp_path)))
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted at iteration 1; there is no checkpoint yet\n"


def test_ctrl_c_in_several_processes_is_said_once(forking, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TINY_FAULT", "interrupt:0:10")
    with pytest.raises(SystemExit) as end:
        engine.run(tiny_run.SharedTrainer, None, tiny_run.arguments(tmp_path, "--num-processes", "2"))
    said = capfd.readouterr().err
    assert end.value.code == 130, said
    assert said.count("interrupted at") == 1 and "model_0000008.pth: --resume goes on from it" in said
