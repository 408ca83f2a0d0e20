"""Files written before the modules moved into packages still load; `old_files/README.md` says how they were made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_tasks
import torch
from scripts import loaded

import sirfp
from sirfp.cli import main

pytestmark = pytest.mark.usefixtures("undrawn")

FILES = Path(__file__).parent / "old_files"
RUNS = {
    "segmentation": ("SegmentationTrainer", "add_segmentation_config"),
    "classification": ("ClassificationTrainer", "add_classification_config"),
}
STUDIES = {"finished": {"done": 3}, "failed": {"done": 8, "failed": 2}}


def checkpoint_of(folder):
    return folder / (folder / "last_checkpoint").read_text()


def read_plan(text):
    return sirfp.PruningPlan.from_json(text)


@pytest.mark.parametrize("project", RUNS)
def test_a_checkpoint_refers_to_no_module_of_ours(project):
    """Otherwise it could not be read after the module has moved."""
    assert torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint_of(FILES / "runs" / project)) == []


def test_the_checkpoints_are_from_before_and_between_the_prunings():
    before, between = (torch.load(checkpoint_of(FILES / "runs" / name), weights_only=True) for name in RUNS)
    hook = before["trainer"]["hooks"]["Accumulate"]
    assert hook["steps"] == 0 and not before["plan"]
    matrices = [t for average in hook["statistics"]["criterion"]["redundancy"].values() for t in tensors(average)]
    assert any(matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1] > 1 for matrix in matrices)
    hook = between["trainer"]["hooks"]["Accumulate"]
    assert hook["steps"] == 1 and hook["statistics"]["iteration"] > 0 and hook["plan"] == between["plan"]
    assert all("momentum_buffer" in s for s in between["trainer"]["_trainer"]["optimizer"]["state"].values())


@pytest.mark.parametrize(
    ("project", "layer"), [("segmentation", "sem_seg_head.predictor"), ("classification", "classifier")]
)
def test_the_config_of_a_run_is_known_by_its_keys(project, layer, capsys):
    """Runs wrote no PROJECT into their config.yaml then."""
    file = FILES / "runs" / project / "config.yaml"
    assert "PROJECT: " not in file.read_text()
    assert main(["report", "--config-file", str(file)]) == 0
    assert layer in capsys.readouterr().out


def tensors(average):
    return [value for value in average.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("project", RUNS)
def test_a_stopped_run_goes_on_to_the_plan_that_it_ended_with(project, tmp_path, monkeypatch, clean_catalogs):
    folder = FILES / "runs" / project
    shutil.copytree(folder, tmp_path / "out")
    tiny_tasks.make_data(tmp_path)
    monkeypatch.chdir(tmp_path)  # paths of data in the run's own config are relative
    command = ["--num-gpus", "0", "--config-file", "out/config.yaml", "--resume", "OUTPUT_DIR", str(tmp_path / "out")]
    with loaded(f"projects/{project}/train_net.py") as script:
        trainer, add_config = (getattr(script, name) for name in RUNS[project])
        script.run(trainer, add_config, command)
    log = (tmp_path / "out/log.txt").read_text()
    done = int(checkpoint_of(folder).stem.removeprefix("model_")) + 1
    assert f"Starting training from iteration {done}" in log
    assert "state_dict is ignored" not in log, "each hook found its state in the checkpoint"
    end = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    plan, first = read_plan(end["plan"]), torch.load(checkpoint_of(folder), weights_only=True)["plan"]
    if first:
        kept = read_plan(first).kept
        assert all(set(plan.kept[name]) <= set(kept[name]) for name in kept) and plan.kept != kept
    then = read_plan((folder / "plan_at_end.json").read_text())
    # What the run did has changed since: segmentation's second cut follows a refit of the first one, which has been
    # mended; classification's has MIN_KEEP of the dense network's channels instead of those that the first cut left.
    if project in ("segmentation", "classification"):
        assert plan.flops[0] == then.flops[0] and plan.flops[1] == pytest.approx(then.flops[1], rel=0.01)
    else:
        assert plan == then
    assert end["iteration"] == 11 and end["trainer"]["hooks"]["Accumulate"]["steps"] == 2


@pytest.mark.parametrize("name", ["timm_resnet", "detectron2_retinanet"])
def test_a_pruned_file_fills_the_dense_network_and_answers_as_then(name):
    with loaded("tests/old_files/networks.py") as networks:
        model, inputs = networks.dense(name), networks.inputs(name)
        dense = networks.answers(model, inputs)
        plan = sirfp.load(FILES / "pruned" / f"{name}.safetensors", model)
        answers = networks.answers(model, inputs)
    with np.load(FILES / "pruned" / f"{name}.npz") as file:
        expected = [torch.from_numpy(file[key]) for key in file.files]
    for answer, other, stored in zip(answers, dense, expected, strict=True):
        close = 1e-4 * float(stored.abs().max())
        torch.testing.assert_close(answer, stored, rtol=0, atol=close)
        assert not torch.allclose(other, stored, rtol=0, atol=100 * close), "the fresh network answers something else"
    assert sum(p.numel() for p in model.parameters()) == plan.params[1] < plan.params[0]
    assert 0.35 < plan.flops[1] / plan.flops[0] <= 0.4


def content(folder):
    """Every file of a study's runs, by its path."""
    return {file: file.read_bytes() for kind in ("dense", "cells") for file in folder.glob(f"{kind}/*/*")}


def as_stored(now, stored):
    """A current result, reduced to the keys of the old one; new keys are allowed."""
    return [{key: row[key] for key in old} for row, old in zip(now, stored, strict=True)]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_listed_and_reported_as_then_and_runs_nothing(name, tmp_path, monkeypatch, capsys):
    shutil.copytree(FILES / "studies" / name, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    out, states = tmp_path / "out", STUDIES[name]
    before, stored = content(out), json.loads((out / "results.json").read_text())
    for file in out.glob("results.*"):
        file.unlink()

    assert main(["study", "study.yaml", "--folder", "out", "--list", "--json"]) == 0
    listed = [run["state"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert {state: listed.count(state) for state in listed} == states

    failed = [run["cause"] for run in stored["runs"] if run["state"] == "failed"]
    for options, ends in (["--report"], 0), ([], int("failed" in states)):  # the second would run what is not done
        assert main(["study", "study.yaml", "--folder", "out", *options]) == ends
        said = capsys.readouterr().out
        assert all(f"failed: {cause}" in said for cause in failed)
        results = json.loads((out / "results.json").read_text())
        assert as_stored(results["rows"], stored["rows"]) == stored["rows"]
        assert as_stored(results["runs"], stored["runs"]) == stored["runs"]
        page = (out / "report.html").read_text()
        assert all(row["criterion"] in page for row in stored["rows"])
        assert content(out) == before and not (tmp_path / "calls.txt").exists(), "no run was started"


def test_programs_of_that_time_find_how_models_are_called():
    from sirfp.calling import call, tensors

    assert [path for path, _ in tensors(call(torch.nn.Identity(), torch.ones(1)))] == ["output"]
