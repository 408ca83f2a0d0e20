"""Pruning inside a training run: phases, budgets, continued optimizer and schedule, and resuming."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.utils import logger
from marks import slow_but
from tiny_run import HOOKS, IMAGE, Stopped, TaskTrainer, config, run
from torch import nn

import sirfp
from sirfp import engine
from sirfp.budget.target import Flops
from sirfp.errors import InputError
from sirfp.hooks.pruning import check_resumed
from sirfp.session import PruningSession
from sirfp.training.lr_schedule import PhasedPolyLR
from sirfp.training.schedule import Schedule
from sirfp.verify import compare

pytestmark = pytest.mark.usefixtures("undrawn")
SHORT = ("SIRFP.STEPS", "1", "SOLVER.MAX_ITER", "10")
"""One pruning, after eight iterations of ten."""
ONCE = pytest.mark.usefixtures("found_once")
"""Of tests whose runs need not find groups themselves, which `whole` and the resumed runs do."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run: its folder and its trainer."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder)


def test_a_run_prunes_in_steps_and_reports(whole):
    folder, trainer = whole
    plan = trainer.pruning.plan
    assert 0.35 <= plan.flops[1] / plan.flops[0] <= 0.4
    assert plan.params[1] == sum(p.numel() for p in trainer.model.parameters())
    rows = json.loads((folder / "pruning.json").read_text())
    assert list(rows) == ["dense", "pruned", "fine-tuned"]
    assert rows["dense"]["flops"] == plan.flops[0] and rows["fine-tuned"]["flops"] == plan.flops[1]
    assert all(row["latency"] > 0 for row in rows.values())
    for name in ("pruning.md", "plan.json", "kept_channels.png", "dense.safetensors"):
        assert (folder / name).stat().st_size
    fresh = TaskTrainer.build_model(None)
    assert sirfp.load(folder / "pruned.safetensors", fresh) == plan
    assert compare(fresh, trainer.model, IMAGE).relative < 1e-6  # the trainer's weights lie channels-last


def test_a_run_resumed_with_another_schedule_is_refused(whole, caplog):
    """Before, the run went on and its final network did not meet the budget, or was not cut at all."""
    folder, trainer = whole
    plan, schedule = trainer.pruning.plan, Schedule.from_config(trainer.cfg)
    for done, cuts in ((20, 2), (12, 1), (8, 1), (0, 0)):
        check_resumed(schedule, cuts, plan, done)
    for start, steps, changes in ((8, 0, {}), (13, 1, {}), (20, 2, {"steps": 3}), (10, 0, {"start": 9})):
        with pytest.raises(InputError, match=f"^cut {steps + 1} of .* has done {start} with {steps} cuts: resume with"):
            check_resumed(replace(schedule, **changes), steps, plan, start)
    with pytest.raises(InputError, match="its cuts, which keep 0.3.*, but 0.2 of the FLOPs is asked for: resume with"):
        check_resumed(replace(schedule, keep=Flops(0.2)), 2, plan, 20)
    with caplog.at_level(logging.WARNING):
        check_resumed(replace(schedule, keep=Flops(0.7)), 2, plan, 20)
    assert "a budget of 0.7 changes nothing" in caplog.text
    with pytest.raises(InputError, match="cuts or statistics of criterion 'sirfp_joint', not of 'taylor'; resume"):
        state = trainer.pruning.state_dict()
        PruningSession(TaskTrainer.build_model(None), IMAGE, criterion="taylor").load_state_dict(state)


@ONCE
def test_a_run_takes_options_of_the_criterion(tmp_path, caplog, monkeypatch):
    from sirfp.criteria import CRITERIA
    from sirfp.criteria.magnitude import Magnitude

    @CRITERIA.register("signed_magnitude")
    class Signed(Magnitude):
        def __init__(self, model, groups, *, seed=0, my_option: int = 1):
            super().__init__(model, groups, seed=seed)
            self.sign = my_option

        def scores(self):
            return {name: score * self.sign for name, score in super().scores().items()}

    given = ("SIRFP.CRITERION", "signed_magnitude", *SHORT, "SIRFP.OPTIONS.MY_OPTION")
    try:
        kept = [run(tmp_path / sign, *given, sign).pruning.plan.kept for sign in ("1", "-1")]
    finally:
        del CRITERIA["signed_magnitude"]
    assert kept[0] != kept[1] and kept[0].keys() == kept[1].keys()
    logger._LOG_COUNTER.clear()  # what other tests have had said
    monkeypatch.setattr(logging.getLogger("sirfp"), "propagate", True)
    older = ("SIRFP.CRITERION", "sirfp_joint", "SIRFP.EMA", "0.25", "SIRFP.OPTIONS.IMPORTANCE", "dcfp")
    trainer = run(tmp_path / "old", *older, *SHORT)
    assert trainer.pruning.options == {
        "ema": 0.25,
        "importance": "dcfp",
        "stride": 1,
    }  # the last is that of every tiny run
    assert "SIRFP.EMA: the key is now SIRFP.OPTIONS.EMA" in caplog.text


def test_metrics_follow_the_pruning(whole):
    lines = [json.loads(line) for line in (whole[0] / "metrics.json").read_text().splitlines()]
    latest = {key: value for line in lines for key, value in line.items()}
    assert latest["sirfp/keep_flops"] <= 0.4
    assert any(key.startswith("sirfp_channels/backbone.") for key in latest)


def test_the_optimizer_goes_on(whole):
    trainer = whole[1]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.parameters()}
    for parameter in trainer.model.parameters():
        assert trainer.optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape


@pytest.mark.parametrize("stop", slow_but([2, 4, 7, 8, 9, 12, 13, 14, 19], 7, 13))  # prunings at 8 and 13
def test_a_run_cut_off_anywhere_resumes_to_the_same_network(whole, tmp_path, stop):
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop=stop)
    resumed = run(tmp_path / "cut", resume=True)
    assert resumed.pruning.plan == whole[1].pruning.plan
    for name, tensor in whole[1].model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=0, atol=0)


@ONCE
def test_each_network_of_a_run_is_tested_once(tmp_path, monkeypatch):
    seen, test = [], TaskTrainer.test.__func__

    def counted(cls, cfg, model, evaluators=None):
        seen.append(sum(p.numel() for p in model.parameters()))
        return test(cls, cfg, model)

    monkeypatch.setattr(TaskTrainer, "test", classmethod(counted))
    dense, pruned = run(tmp_path).pruning.plan.params
    assert seen == [dense, pruned, pruned]  # before the first cut, after the last, and at the end
    assert list(json.loads((tmp_path / "pruning.json").read_text())) == ["dense", "pruned", "fine-tuned"]


def test_a_pruned_checkpoint_is_evaluated_as_it_is(whole, tmp_path):
    folder, trainer = whole
    results = engine.evaluate(TaskTrainer, config(folder), resume=True)
    assert results == TaskTrainer.test(None, trainer.model)
    weights = str(folder / "pruned.safetensors")
    assert engine.evaluate(TaskTrainer, config(tmp_path / "other", "MODEL.WEIGHTS", weights)) == results


def test_an_evaluation_names_the_file_that_does_not_fit_and_says_if_there_is_none(whole, tmp_path, caplog):
    weights = tmp_path / "w.safetensors"
    other = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 3))
    sirfp.save(weights, other, sirfp.prune(other, torch.zeros(1, 3, 16, 16), "magnitude", keep_flops=0.5))
    with pytest.raises(InputError, match="w.safetensors: the .* is for another model.*; use the config of the run"):
        engine.evaluate(TaskTrainer, config(tmp_path / "a", "MODEL.WEIGHTS", str(weights)))
    state = TaskTrainer.build_model(None).state_dict()
    wider = {name: tensor.repeat(2) if tensor.dim() == 1 else tensor for name, tensor in state.items()}
    torch.save({"model": wider}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="w.pth: .* it has another shape, maybe for other classes, of"):
        engine.evaluate(TaskTrainer, config(tmp_path / "c", "MODEL.WEIGHTS", str(tmp_path / "w.pth")))
    engine.evaluate(TaskTrainer, config(tmp_path / "b"))
    assert "MODEL.WEIGHTS is empty" in caplog.text


@ONCE
def test_a_run_may_start_from_a_pruned_network_and_prune_further(whole, tmp_path):
    folder, first = whole
    further = run(tmp_path, "MODEL.WEIGHTS", str(folder / "pruned.safetensors"), "SIRFP.KEEP_FLOPS", "0.25")
    plan = further.pruning.plan
    assert plan.flops[0] == first.pruning.plan.flops[0]
    assert plan.flops[1] / plan.flops[0] <= 0.25


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["SIRFP.ROUND_TO", "32"], "cannot be reached: 0.7 of .*ROUND_TO 32\\); .* cut 1 of 2 on the way to 0.4"),
        (["SIRFP.ROUND_TO", "8", "SIRFP.KEEP_FLOPS", "0.1"], "0.1 of the FLOPs .*MIN_KEEP 0.02, ROUND_TO 8\\)$"),
        (["SIRFP.KEEP", "{'*.a.*': 1.0}", "SIRFP.KEEP_FLOPS", "0.01"], "KEEP of 1 groups"),
    ],
    ids=["first pruning", "last pruning", "given width"],
)
def test_a_budget_out_of_reach_ends_a_run_before_its_first_step(tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(TaskTrainer, "run_step", lambda self: pytest.fail("the run has begun"))
    with pytest.raises(InputError, match=words):
        run(tmp_path, *options)


@ONCE
def test_norm_statistics_are_taken_anew(tmp_path):
    trainer = run(tmp_path, *SHORT, "SIRFP.RECOVER_NORM_ITERS", "3")
    assert trainer.pruning.steps == 1


def test_a_run_without_pruning_needs_no_hook(tmp_path):
    trainer = run(tmp_path, "SIRFP.HOOKS", "[]", "SIRFP.KEEP_FLOPS", "1.0")
    assert not hasattr(trainer, "pruning")


@ONCE
@pytest.mark.parametrize(
    ("criterion", "penalty"),
    [
        pytest.param("taylor", "", marks=pytest.mark.slow),
        ("dcfp", ""),
        pytest.param("sirfp_joint", "", marks=pytest.mark.slow),
        ("slimming", "SlimmingPenalty"),
        ("depgraph", "GroupRegularization"),
    ],
)
def test_rivals_prune_in_a_run_and_resume(tmp_path, criterion, penalty):
    hooks = ["Accumulate", *([penalty] if penalty else []), "PruneSteps"]
    opts = ["SIRFP.CRITERION", criterion, "SIRFP.HOOKS", str(hooks), "SIRFP.SPARSITY.WEIGHT", "0.01"]
    whole = run(tmp_path / "whole", *opts)
    assert whole.pruning.plan.flops[1] / whole.pruning.plan.flops[0] <= 0.4 and whole.pruning.steps == 2
    with pytest.raises(Stopped):
        run(tmp_path / "cut", *opts, stop=7)
    assert run(tmp_path / "cut", *opts, resume=True).pruning.plan == whole.pruning.plan


@ONCE
@pytest.mark.parametrize(
    ("criterion", "hooks"),
    [
        ("sirfp", HOOKS),
        ("sirfp", "['PruneSteps']"),
        ("magnitude", "['Accumulate', 'PruneSteps']"),
        ("random", "['PruneSteps']"),
        *(pytest.param("sirfp_setwise", hooks, marks=pytest.mark.slow) for hooks in (HOOKS, "['PruneSteps']")),
        pytest.param("sirfp", "['Accumulate', 'PruneSteps']", marks=pytest.mark.slow),
        pytest.param("magnitude", HOOKS, marks=pytest.mark.slow),
    ],
)
def test_criteria_and_hooks_combine(tmp_path, criterion, hooks):
    if criterion == "sirfp" and "Accumulate" not in hooks:
        with pytest.raises(InputError, match="Accumulate"):
            run(tmp_path, "SIRFP.CRITERION", criterion, "SIRFP.HOOKS", hooks)
        return
    plan = run(tmp_path, *SHORT, "SIRFP.CRITERION", criterion, "SIRFP.HOOKS", hooks).pruning.plan
    assert plan.flops[1] / plan.flops[0] <= 0.4 and plan.criterion == criterion


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (("SIRFP.HOOKS", "['Acumulate']"), "did you mean Accumulate"),
        (("SIRFP.START_ITER", "3"), "ACCUMULATE_ITERS 5 is more than"),
        (("SOLVER.MAX_ITER", "10"), "after SOLVER.MAX_ITER"),
    ],
)
def test_a_schedule_that_cannot_be_is_said_at_once(tmp_path, opts, said):
    with pytest.raises(InputError, match=said):
        run(tmp_path, *opts)


def test_schedule():
    schedule = Schedule(start=100, steps=3, accumulate=40, recover=20, keep=Flops(0.4), end=200)
    assert schedule.iterations == (100, 120, 140)
    assert [schedule.target(k).share for k in range(3)] == pytest.approx([0.8, 0.6, 0.4])
    assert [schedule.phase(i) for i in (0, 59, 60, 99, 100, 139, 140)] == [
        "train", "train", "accumulate", "accumulate", "recover", "recover", "fine-tune",
    ]  # fmt: skip
    assert [i for i in range(200) if schedule.accumulates(i)] == list(range(60, 140))
    assert schedule.lengths == (100, 20, 20, 60)


def test_phases_begin_anew():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = PhasedPolyLR(optimizer, (10, 0, 10), (1.0, 1.0, 0.5), power=1.0, warmup=100, warmup_factor=0.0)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert np.allclose(rates[:4], [0, 0.45, 0.8, 0.7]) and np.allclose(rates[10:], np.array(rates[:10]) / 2)


@ONCE
def test_weight_decay_changes_with_the_first_pruning(tmp_path):
    """Only the iteration decides, also in a resumed run; parameters without weight decay get none."""
    cfg = config(tmp_path, "SIRFP.WEIGHT_DECAY_FACTOR", "5.0")  # prunings at 8 and 13 of 20

    def decays(last_epoch=0):
        groups = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": decay} for decay in (1e-4, 0.0)]
        optimizer = torch.optim.SGD(groups, 1.0)
        schedule = PhasedPolyLR.from_config(cfg, optimizer)
        schedule.load_state_dict(schedule.state_dict() | {"last_epoch": last_epoch})
        for _ in range(last_epoch, 20):
            optimizer.step()
            schedule.step()
            yield [group["weight_decay"] for group in optimizer.param_groups]

    assert np.allclose(list(decays()), [[1e-4, 0]] * 7 + [[5e-4, 0]] * 13)  # of iterations 1 to 20
    assert np.allclose(list(decays(15)), [[5e-4, 0]] * 5)
    trainer = run(tmp_path, *SHORT, "SIRFP.WEIGHT_DECAY_FACTOR", "5.0", "SOLVER.WEIGHT_DECAY", "0.001")
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.0, 0.005}
