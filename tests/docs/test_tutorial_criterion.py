"""The criterion that the tutorial writes works everywhere: on the command line, in training runs, and in a study."""

from __future__ import annotations

import json

import pytest
import timm
import yaml
from pages import blocks

import sirfp
from sirfp import cli
from sirfp.criteria import CRITERIA

PAGE = "docs/tutorial.md"
SHORT = {
    "INPUT.SIZE": 32, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.WARMUP_ITERS": 0, "DATALOADER.NUM_WORKERS": 0,
    "SIRFP.RECONSTRUCTION_ITERS": 0, "SOLVER.AMP.ENABLED": False,
}  # fmt: skip


@pytest.fixture
def criterion(tmp_path, monkeypatch):
    """The tutorial's files in the current folder, and the name that its criterion has."""
    for block in blocks(PAGE):
        if block.file in ("my_criterion.py", "my_study.yaml"):
            (tmp_path / block.file).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIRFP_DATASETS", str(tmp_path / "datasets"))
    yield "spread"
    if "spread" in CRITERIA:
        del CRITERIA["spread"]


def test_the_command_line_prunes_by_it(criterion, tmp_path):
    given = ["--timm", "resnet10t", "--num-classes", "5", "--size", "32", "32", "--keep-flops", "0.5"]
    own = ["--import", "my_criterion.py", "--criterion", criterion]
    assert cli.main(["prune", *own, *given, "-o", "small.safetensors"]) == 0
    plan = sirfp.load(tmp_path / "small.safetensors", timm.create_model("resnet10t", num_classes=5))
    assert plan.criterion == criterion and plan.flops[1] <= 0.5 * plan.flops[0]


@pytest.mark.slow
def test_a_study_trains_and_prunes_by_it(criterion, tmp_path):
    assert cli.main(["data", "scenes", "--train", "16", "--val", "32", "--size", "64"]) == 0
    study = yaml.safe_load((tmp_path / "my_study.yaml").read_text())
    assert study["imports"] == ["my_criterion.py"]
    task = study["tasks"]["classification"]
    task["iterations"], task["overrides"] = {"dense": 4, "accumulate": 2, "recover": 0, "finetune": 2}, SHORT
    (tmp_path / "my_study.yaml").write_text(yaml.safe_dump(study))
    assert cli.main(["study", "my_study.yaml", "--only", f"*/{criterion}/*"]) == 0
    folder = tmp_path / "output/studies/my_study"
    states = {run["name"]: run["state"] for run in json.loads((folder / "results.json").read_text())["runs"]}
    assert states[f"classification/resnet18/{criterion}/0.5/seed1"] == "done"
