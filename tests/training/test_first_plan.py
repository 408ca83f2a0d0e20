"""A run with SIRFP.PLAN trains the network that another run has left, from its initial weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_run import Stopped, TaskTrainer, config, run

from sirfp import engine
from sirfp.checkpoint import read_safetensors, restore
from sirfp.errors import InputError
from sirfp.surgery.cut import apply

pytestmark = pytest.mark.usefixtures("undrawn", "found_once")

ALONE = ("SIRFP.HOOKS", "[]", "SIRFP.KEEP_FLOPS", "1.0")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned")
    return folder, run(folder).pruning.plan


def from_scratch(pruned, folder, *opts, **how):
    return run(folder, *ALONE, "SIRFP.PLAN", str(pruned[0] / "plan.json"), *opts, **how)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_run_starts_from_the_cut_initial_network(pruned, tmp_path):
    with pytest.raises(Stopped):
        from_scratch(pruned, tmp_path, "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.BASE_LR", "1e-12", stop=1)
    saved = torch.load(tmp_path / "model_0000000.pth", weights_only=True)
    expected = TaskTrainer.build_model(None)
    apply(expected, pruned[1])
    for name, value in expected.named_parameters():
        torch.testing.assert_close(saved["model"][name], value, rtol=0, atol=1e-9)
    assert saved["plan"] == pruned[1].to_json()


def test_it_trains_all_weights_and_its_file_is_complete(pruned, tmp_path):
    trainer = from_scratch(pruned, tmp_path)
    assert shapes(trainer.model) != shapes(TaskTrainer.build_model(None))
    assert set(trainer.optimizer.state) == set(trainer.model.parameters()), "the optimizer holds the cut parameters"
    results = engine.evaluate(TaskTrainer, config(tmp_path), resume=True)
    assert results == TaskTrainer.test(None, trainer.model)
    plan, weights = (str(folder / name) for folder, name in ((pruned[0], "plan.json"), (tmp_path, "model_final.pth")))
    again = engine.evaluate(TaskTrainer, config(tmp_path / "b", "SIRFP.PLAN", plan, "MODEL.WEIGHTS", weights))
    assert again == results


def test_it_resumes_to_the_same_weights(pruned, tmp_path):
    whole = from_scratch(pruned, tmp_path / "whole")
    with pytest.raises(Stopped):
        from_scratch(pruned, tmp_path / "cut", stop=7)
    resumed = from_scratch(pruned, tmp_path / "cut", resume=True)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_it_starts_from_given_weights_too(pruned, tmp_path):
    with pytest.raises(Stopped):
        weights = str(pruned[0] / "dense.safetensors")
        more = ("MODEL.WEIGHTS", weights, "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.BASE_LR", "1e-12")
        from_scratch(pruned, tmp_path, *more, stop=1)
    expected = TaskTrainer.build_model(None)
    restore(expected, *read_safetensors(weights), weights)
    apply(expected, pruned[1])
    saved = torch.load(tmp_path / "model_0000000.pth", weights_only=True)["model"]
    for name, value in expected.named_parameters():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=1e-9)


def test_mistakes_are_said_in_one_line(pruned, tmp_path):
    for name, content, says in (
        ("gone.json", None, r"SIRFP.PLAN .*gone.json cannot be read .*it must be a plan.json"),
        ("broken.json", "{", r"SIRFP.PLAN .*broken.json: "),
        ("other.json", pruned[1].to_json().replace("backbone", "trunk"), r"the plan is for another model"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=says):
            run(tmp_path / "out", *ALONE, "SIRFP.PLAN", str(tmp_path / name))
    weights, plan = str(pruned[0] / "pruned.safetensors"), str(tmp_path / "further.json")
    (tmp_path / "further.json").write_text(replace(pruned[1], criterion="taylor").to_json())
    with pytest.raises(InputError, match="MODEL.WEIGHTS are pruned already; remove one of the two"):
        run(tmp_path / "out", *ALONE, "SIRFP.PLAN", plan, "MODEL.WEIGHTS", weights)
