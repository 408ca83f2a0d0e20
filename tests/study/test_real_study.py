"""A whole study of the classification project on a few embedded digits, interrupted once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from sirfp.data import make_scenes

STUDY = {
    "iterations": {"dense": 12, "accumulate": 20, "recover": 2, "finetune": 20},
    "steps": 2,
    "criteria": ["sirfp", "random", {"name": "scratch", "scratch": "random"}],
    "budgets": [0.5],
    "seeds": [1],
    "overrides": {
        "MODEL.TIMM.NAME": "test_resnet", "INPUT.SIZE": 32, "SOLVER.IMS_PER_BATCH": 8, "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.LR_SCHEDULER_NAME": "PhasedPolyLR",
    },
    "tasks": {
        "digits": {
            "project": "classification",
            "metric": "classification/top1",
            "models": {"tiny": "configs/scenes/resnet18.yaml"},
        }
    },
}  # fmt: skip


@pytest.mark.slow
def test_a_study_that_was_killed_loses_no_finished_cell_and_goes_on(tmp_path):
    make_scenes(tmp_path / "datasets" / "scenes", train=40, val=40)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    command = [sys.executable, "-m", "sirfp.cli", "study", "study.yaml", "--folder", "out"]
    environment = os.environ | {name: str(tmp_path / "datasets") for name in ("SIRFP_DATASETS", "DETECTRON2_DATASETS")}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("out/cells/*random*/last_checkpoint")):  # sirfp is done, random is half-way
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = {file.parent.name: file.read_text() for file in tmp_path.glob("out/*/*/done.json")}
    assert len(done) == 2
    ended = subprocess.run(command, cwd=tmp_path, env=environment, timeout=200, check=False)
    assert ended.returncode == 0
    for name, text in done.items():
        (file,) = tmp_path.glob(f"out/*/{name}/done.json")
        assert file.read_text() == text
    (log,) = tmp_path.glob("out/cells/*random*/console.txt")
    assert "Starting training from iteration 20" in log.read_text()
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["criterion"] for row in results["rows"]] == ["dense", "sirfp", "random", "scratch"]
    for row in results["rows"][1:3]:
        assert 0.45 < row["flops_kept"] <= 0.5 and 0 <= row["mean"] <= 100 and row["latency"] > 0
    random, scratch = results["rows"][2:]
    assert scratch["flops"] == random["flops"] and 0 <= scratch["mean"] <= 100
    (log,) = tmp_path.glob("out/cells/*scratch*/log.txt")
    assert "Starting training from iteration 0" in log.read_text()
    for folder in [*tmp_path.glob("out/cells/*-sirfp-*"), *tmp_path.glob("out/cells/*-random-*")]:
        assert {"redundancies.npz", "predictions.png", "pruned.safetensors"} <= {file.name for file in folder.iterdir()}
    assert (tmp_path / "out/report.html").read_text().count("Predictions of") == 2
