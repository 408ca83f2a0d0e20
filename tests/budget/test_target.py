"""Targets of a budget: each of the three is met in one step and in several, and plans record it."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_networks import INPUT, build
from test_allocation import FOUND, Wide, _scores
from tiny_run import run

import sirfp
from sirfp.budget import latency
from sirfp.budget.allocation import allocate, smallest
from sirfp.budget.limits import Limits
from sirfp.budget.target import TARGETS, Flops, Latency, Target
from sirfp.channels import find_groups
from sirfp.cli import main
from sirfp.config import load_config
from sirfp.errors import InputError
from sirfp.network import clock as clocks
from sirfp.network.clock import IN_PYTORCH, PyTorchClock
from sirfp.reporting import tables
from sirfp.structure.plan import QUANTITIES, PruningPlan
from sirfp.surgery.plan_and_cut import plan_for

pytestmark = pytest.mark.usefixtures("undrawn")

X = torch.randn(INPUT)


@pytest.fixture
def clock(monkeypatch):
    """Times that follow from the widths alone: a layer's grow slower than its weights, and a call has some overhead."""

    def layers_of(self, models, inputs, layers):
        sizes = [[model.get_submodule(name).weight.numel() for name in layers] for model in models]
        return np.array([[*(n**0.8 for n in each), 200.0] for each in sizes])

    def seconds(model):
        return 1.3 * sum(p.numel() ** 0.9 for p in model.parameters()) + 9000.0

    monkeypatch.setattr(PyTorchClock, "layers", layers_of)
    monkeypatch.setattr(
        PyTorchClock, "against", lambda self, first, inputs: lambda second: (seconds(first), seconds(second))
    )
    return seconds


@pytest.mark.parametrize("quantity", ["flops", "params", "latency"])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_a_budget_is_met(clock, quantity, criterion):
    model = build(Wide)
    before = clock(model)
    plan = sirfp.prune(model, X, criterion, **{f"keep_{quantity}": 0.4})
    if quantity == "latency":
        assert clock(model) / before == pytest.approx(0.4, rel=0.05)
        assert plan.latency == (before, clock(model))
    else:
        dense, kept = getattr(plan, quantity)
        assert 0.995 * 0.4 <= kept / dense <= 0.4
    assert plan.budget == (quantity, 0.4) and PruningPlan.from_json(plan.to_json()) == plan
    assert f"Budget: 40% of the {tables.QUANTITIES[quantity]}" in tables.budget_line(tables.summary(plan))[0]


@pytest.mark.parametrize("kind", TARGETS.values(), ids=TARGETS)
def test_each_quantity_says_what_it_is(clock, kind):
    found, model = FOUND[Wide], build(Wide)
    half, plan = kind(0.5), plan_for(found, smallest(found))
    assert half == kind(0.5) != kind(0.6) and str(half) == f"0.5 of the {QUANTITIES[kind.name]}"
    assert all(half != other(0.5) for other in TARGETS.values() if other is not kind)
    assert half.choose(model, X, found, _scores(found, 0)).budget == (kind.name, 0.5)
    keep, all_of_it = smallest(found), np.ones(found.atoms, dtype=bool)
    assert half.cost(found)(keep) < half.cost(found)(all_of_it) == half.cost(found)()
    if isinstance(half, Latency):
        assert half.pair(plan) is None and math.isnan(half.kept(plan))
        assert half.kept(replace(plan, latency=(2.0, 0.5))) == 0.25
    else:
        assert half.kept(plan) == half.cost(found)(keep) / half.cost(found)()
        assert half.dense(found, None) == half.cost(found)()
        assert half.dense(found, replace(plan, flops=(7, 3), params=(7, 3))) == 7, "what was dense at first counts"


@pytest.mark.parametrize("kind", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("limits", [Limits(), Limits(min_keep=0.6), Limits(round_to=32)])
def test_a_budget_is_in_reach_where_a_choice_meets_it(clock, kind, limits):
    found, model = FOUND[Wide], build(Wide)
    scores, met = _scores(found, 0), []
    for share in (0.0001, 0.1, 0.3, 0.5, 0.9, 1.0):
        target = kind(share)
        try:
            choice = target.choose(model, X, found, scores, limits)
        except InputError as error:
            met.append(False)
            with pytest.raises(InputError, match="cannot be reached"):
                target.check_reach(model, X, found, limits)
            assert f"MIN_KEEP {limits.min_keep}" in str(error)
        else:
            met.append(True)
            target.check_reach(model, X, found, limits)
            for group in found:
                width = int(choice.keep[found.spans[group.name]].sum())
                assert width >= limits.min_keep * group.size and width % limits.round_to == 0
    assert met == sorted(met) and not met[0] and met[-1]


def test_latency_in_two_steps_is_of_the_dense_network(clock):
    model = build(Wide)
    before = clock(model)
    first = sirfp.prune(model, X, "magnitude", keep_latency=0.7)
    found = find_groups(model, X)
    keep, pair = latency.meet(model, X, found, _scores(found, 0), 0.5, first)
    assert pair[1] / before == pytest.approx(0.5, rel=0.05) and pair[0] / before == pytest.approx(0.7, rel=0.05)
    by_flops = sirfp.prune(build(Wide), X, "magnitude", 0.5)
    with pytest.raises(InputError, match="its plan records no latency"):
        latency.meet(model, X, found, _scores(found, 0), 0.5, by_flops)


def test_a_latency_out_of_reach_says_the_least(clock):
    found = FOUND[Wide]
    model = build(Wide)
    least = clock(latency.cut_copy(model, found, smallest(found))) / clock(model)
    said = rf"0.01 of the latency is asked for, the least that can be kept is {math.ceil(least * 1000) / 1000:.3f}"
    with pytest.raises(InputError, match=said):
        sirfp.prune(model, X, "magnitude", keep_latency=0.01)
    with pytest.raises(
        InputError, match=r"0.0001 of the parameters is asked for, the least that can be kept is 0\.\d+"
    ):
        sirfp.prune(model, X, "magnitude", keep_params=0.0001)


def test_the_machine_s_own_clock_is_read(monkeypatch):
    monkeypatch.setattr(clocks, "SECONDS", 0.01)
    monkeypatch.setattr(latency, "TRIES", 1)
    torch.manual_seed(0)
    model = Wide()
    plan = sirfp.prune(model, X, "magnitude", keep_latency=0.8)
    assert min(plan.latency) > 0 and plan.flops[1] < plan.flops[0]


def test_the_table_is_exact_at_its_points(clock):
    found, model = FOUND[Wide], build(Wide)
    table = latency.LatencyTable.measure(model, X, found)
    layers = latency._layers(model)
    for keep in (np.ones(found.atoms, dtype=bool), smallest(found)):
        copied = latency.cut_copy(model, found, keep)
        assert table(keep) == pytest.approx(IN_PYTORCH.layers([copied], X, layers).sum())


def test_few_wide_chunks_are_exchanged_to_meet_a_budget():
    found = FOUND[Wide]
    for seed in range(4):
        keep = allocate(found, _scores(found, seed), 0.5 * found.params(), found.params, limits=Limits(round_to=8))
        assert 0.995 * 0.5 <= found.params(keep) / found.params() <= 0.5


@pytest.mark.parametrize("quantity", ["flops", "params", "latency"])
def test_a_network_that_is_frozen_is_said(clock, quantity):
    with pytest.raises(InputError, match="every channel is frozen"):
        sirfp.prune(build(Wide), X, "magnitude", ignore=["*"], **{f"keep_{quantity}": 0.5})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep_flops": 0.5, "keep_params": 0.4}, "give one budget, not 2: keep_flops 0.5 and keep_params 0.4"),
        ({"keep_latency": 1.5}, r"keep_latency must lie in \(0, 1\], got 1.5"),
        ({"keep_params": float("nan")}, r"keep_params must lie in \(0, 1\], got nan"),
    ],
)
def test_one_budget_at_a_time(given, says):
    with pytest.raises(InputError, match=says):
        sirfp.prune(build(Wide), X, "magnitude", **given)


def test_the_command_line_takes_one_budget(tmp_path, capsys):
    file, network = str(tmp_path / "small.safetensors"), ["--timm", "test_resnet", "--size", "64", "64"]
    common = ["prune", *network, "--criterion", "magnitude", "-o", file, "--json"]
    assert main([*common, "--keep-flops", "0.5", "--keep-latency", "0.5"]) == 2
    said = capsys.readouterr().err
    assert said == "error: give one budget, not 2: --keep-flops 0.5 and --keep-latency 0.5\n"
    assert main([*common, "--keep-params", "0.5"]) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    assert budget["quantity"] == "params" and budget["asked"] == 0.5 and 0.4975 <= budget["kept"] <= 0.5
    assert main(["report", file]) == 0
    assert "Budget: 50% of the parameters" in capsys.readouterr().out


def test_the_config_takes_one_budget():
    assert Target.from_config(load_config("")) == Flops(1.0)
    assert Target.from_config(load_config("", ["SIRFP.KEEP_LATENCY", "0.5"])) == Latency(0.5)
    with pytest.raises(InputError, match=r"SIRFP.KEEP_FLOPS 0.4 and SIRFP.KEEP_PARAMS 0.5"):
        Target.from_config(load_config("", ["SIRFP.KEEP_FLOPS", "0.4", "SIRFP.KEEP_PARAMS", "0.5"]))


def test_a_run_prunes_parameters_in_steps(tmp_path):
    trainer = run(tmp_path, "SIRFP.KEEP_FLOPS", "1.0", "SIRFP.KEEP_PARAMS", "0.5")
    plan = trainer.pruning.plan
    assert plan.budget == ("params", 0.5) and 0.45 <= plan.params[1] / plan.params[0] <= 0.5
    assert trainer.checkpointer.plan == plan
    assert "Budget: 50% of the parameters" in (tmp_path / "pruning.md").read_text()


def test_a_run_prunes_latency_in_steps_and_goes_on_after_a_stop(clock, tmp_path):
    from tiny_run import Stopped

    options = ("SIRFP.KEEP_FLOPS", "1.0", "SIRFP.KEEP_LATENCY", "0.8")
    with pytest.raises(Stopped):
        run(tmp_path, *options, stop=10)  # between the two prunings
    plan = run(tmp_path, *options, resume=True).pruning.plan
    assert plan.budget == ("latency", 0.8) and plan.latency[1] / plan.latency[0] == pytest.approx(0.8, rel=0.05)


def test_a_run_to_a_latency_out_of_reach_ends_before_it_begins(clock, tmp_path):
    options = ("SIRFP.KEEP_FLOPS", "1.0", "SIRFP.KEEP_LATENCY", "0.01", "SIRFP.STEPS", "1")
    with pytest.raises(InputError, match="0.01 of the latency is asked for, the least that can be kept is"):
        run(tmp_path, *options, stop=0)


@pytest.mark.parametrize("change", [{"budget": ["time", 0.5]}, {"budget": ["flops", 2]}, {"latency": [0, 1]}])
def test_a_broken_budget_in_a_plan_is_refused(change):
    plan = sirfp.prune(build(Wide), X, "magnitude", 0.5)
    with pytest.raises(InputError, match=f"plan.{next(iter(change))}"):
        PruningPlan.from_json(json.dumps(json.loads(plan.to_json()) | change))


@pytest.mark.parametrize("quantity", ["flops", "params"])
def test_a_plan_far_below_its_budget_is_said(quantity, caplog):
    caplog.set_level("WARNING", "sirfp")
    model, found, said = build(Wide), FOUND[Wide], set()
    target = TARGETS[quantity]
    for share, round_to in itertools.product((0.45, 0.5, 0.55, 0.6, 0.65), (1, 32)):
        caplog.clear()
        choice = target(share).choose(model, X, found, _scores(found, 0), Limits(round_to=round_to))
        kept = target(share).cost(found)(choice.keep) / target(share).cost(found)()
        far = kept < 0.995 * share
        text = (
            f"keeps {kept:.3f} of the {QUANTITIES[quantity]} where {share:.3f} is allowed: no widths in multiples of 32"
        )
        assert (text in caplog.text) == far == bool(caplog.text) and not (far and round_to == 1)
        said.add(far)
    assert said == {False, True}


def test_a_plan_that_has_to_cut_nothing_says_nothing(caplog):
    caplog.set_level("WARNING", "sirfp")
    first = sirfp.prune(model := build(Wide), X, "magnitude", 0.5)
    found = find_groups(model, X)
    choice = Flops(0.9).choose(model, X, found, _scores(found, 0), Limits(), first)
    assert choice.keep.all() and "The plan keeps" not in caplog.text
