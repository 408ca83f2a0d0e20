"""A model remembers its plan: further cuts continue it, files need no plan, copies and optimizers are kept in step."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from small_networks import Dense, Residual, build
from torch import nn

import sirfp
from sirfp.surgery.cut import apply
from sirfp.surgery.earlier_cuts import earlier_plan

X = torch.randn(2, 3, 16, 16)
BATCHES = [torch.randn(4, 3, 16, 16) for _ in range(3)]


def sizes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def loads(model, kind, path):
    """Saves a model without a plan; checks that the file makes the same network of a dense one. Returns its plan."""
    sirfp.save(path, model)
    fresh = build(kind, seed=9)
    plan = sirfp.load(path, fresh)
    torch.testing.assert_close(fresh.eval()(X), model.eval()(X), rtol=0, atol=0)
    return plan


@pytest.mark.parametrize(
    ("kind", "criterion", "shares"),
    [
        (Residual, "sirfp_setwise", (0.6, 0.4)),
        (Dense, "magnitude", (0.8, 0.6, 0.4)),
        pytest.param(Residual, "magnitude", (0.8, 0.6, 0.4), marks=pytest.mark.slow),
        pytest.param(Residual, "sirfp_setwise", (0.8, 0.6, 0.4), marks=pytest.mark.slow),
        pytest.param(Dense, "sirfp_setwise", (0.8, 0.6, 0.4), marks=pytest.mark.slow),
    ],
)
def test_pruning_again_gives_the_plan_of_the_dense_network(kind, criterion, shares, tmp_path):
    model, path = build(kind), tmp_path / "p.safetensors"
    dense = sirfp.find_groups(model, X, trial=False).flops()
    for share in shares:
        plan = sirfp.prune(model, X, criterion, keep_flops=share, calibration=BATCHES)
        assert plan.flops == (dense, sirfp.find_groups(model, X, trial=False).flops())
        assert 0.9 * share < plan.flops[1] / dense <= share
        assert plan == earlier_plan(model) == loads(model, kind, path)


def test_every_way_to_cut_a_model_is_remembered(tmp_path):
    model = build(Residual)
    first = sirfp.prune(model, X, "magnitude", keep_flops=0.7)
    sirfp.save(tmp_path / "first.safetensors", model)
    sirfp.load(tmp_path / "first.safetensors", loaded := build(Residual))
    apply(applied := build(Residual), first)
    for one in (loaded, applied, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert earlier_plan(one) == first
        second = sirfp.prune(one, X, "magnitude", keep_flops=0.4)
        assert second.flops[0] == first.flops[0] and second == loads(one, Residual, tmp_path / "p.safetensors")
        assert first.then(second) == second  # as programs wrote it before


def test_a_budget_that_is_met_already_is_said(caplog):
    model = build(Residual)
    first = sirfp.prune(model, X, "magnitude", keep_flops=0.5)
    before = sizes(model)
    again = sirfp.prune(model, X, "magnitude", keep_flops=0.7)
    assert "Nothing is cut" in caplog.text and sizes(model) == before and again.kept == first.kept


@pytest.mark.parametrize("side", [8, 16, 40])
def test_shares_are_of_the_dense_network_for_inputs_of_another_size(side):
    model, inputs = build(Residual), torch.randn(1, 3, side, side)
    dense = sirfp.find_groups(model, inputs).flops()
    sirfp.prune(model, X, "magnitude", keep_flops=0.7)
    plan = sirfp.prune(model, inputs, "magnitude", keep_flops=0.5)
    assert plan.flops[0] == pytest.approx(dense, rel=0.02) and 0.45 < plan.flops[1] / dense < 0.51
    assert plan == earlier_plan(model)


def test_a_model_that_was_changed_after_its_cut_counts_as_dense(caplog, tmp_path):
    model = build(Residual)
    sirfp.prune(model, X, "magnitude", keep_flops=0.5)
    model.load_state_dict({}, strict=False)
    model.head = nn.Conv2d(16, 5, 1)
    model.d = build(Residual).d
    model.short, model.b = build(Residual).short, build(Residual).b
    with pytest.raises(sirfp.InputError, match="does not lead to this model"):
        sirfp.save(tmp_path / "p.safetensors", model)
    assert earlier_plan(model) is None and "counts as dense" in caplog.text


def average(model):
    return torch.optim.swa_utils.AveragedModel(model)


@pytest.mark.parametrize(
    "wrap",
    [copy.deepcopy, average, pytest.param(lambda m: nn.DataParallel(copy.deepcopy(m)), marks=pytest.mark.slow)],
    ids=["copy", "average", "DataParallel"],
)
def test_copies_are_cut_along(wrap, tmp_path):
    model = build(Residual)
    others = [wrap(model), build(Residual, seed=3)]
    for share in (0.7, 0.4):
        plan = sirfp.prune(model, X, "magnitude", keep_flops=share, calibration=BATCHES, also=others)
        inner = [getattr(other, "module", other) for other in others]
        for other in inner:
            assert sizes(other) == sizes(model) and earlier_plan(other) == plan
            loads(other, Residual, tmp_path / "p.safetensors")
    if wrap is average:
        others[0].update_parameters(model)
    with pytest.raises(sirfp.InputError, match="model 1 of also= is not of the structure"):
        sirfp.prune(model, X, "magnitude", keep_flops=0.2, also=[inner[0], build(Residual)])
    assert sizes(model) == sizes(inner[0]), "refused before anything is cut"


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_of_before_the_cut_is_noticed_once(kind, caplog):
    model = build(Residual)
    stale, given = kind(model.parameters(), lr=0.1), kind(model.parameters(), lr=0.1)
    sirfp.prune(model, X, "magnitude", keep_flops=0.5, optimizer=given)
    fresh, other = kind(model.parameters(), lr=0.1), kind(build(Dense).parameters(), lr=0.1)
    model(X).sum().backward()
    for optimizer in (given, fresh, other):
        optimizer.step()
    assert not caplog.records
    for _ in range(3):
        stale.step()
    assert [r.levelno for r in caplog.records] == [logging.WARNING] and "make the optimizer after" in caplog.text
    assert caplog.text.count(kind.__name__) == 1


def test_an_optimizer_of_another_model_is_refused():
    model, optimizer = build(Residual), torch.optim.SGD(build(Residual).parameters(), lr=0.1)
    for cut in (sirfp.prune, lambda *a, criterion, **k: sirfp.Pruner(*a, criterion=criterion, **k)):
        with pytest.raises(sirfp.InputError, match="trains no parameter of the model"):
            cut(model, X, criterion="magnitude", keep_flops=0.5, optimizer=optimizer)
    assert sizes(model) == sizes(build(Residual))


def test_a_file_is_not_loaded_into_a_pruned_model(tmp_path):
    model = build(Residual)
    sirfp.prune(model, X, "magnitude", keep_flops=0.5)
    sirfp.save(tmp_path / "p.safetensors", model)
    with pytest.raises(sirfp.InputError, match="this one is pruned already: build it anew"):
        sirfp.load(tmp_path / "p.safetensors", model)


def test_loading_a_pruned_file_makes_an_optimizer_stale_too(tmp_path, caplog):
    model = build(Residual)
    sirfp.prune(model, X, "magnitude", keep_flops=0.5)
    sirfp.save(tmp_path / "p.safetensors", model)
    optimizer = torch.optim.SGD((fresh := build(Residual)).parameters(), lr=0.1)
    sirfp.load(tmp_path / "p.safetensors", fresh)
    optimizer.step()
    assert "that the model no longer has" in caplog.text


def test_trial_cuts_are_not_remembered():
    """Groups, loss curves and latencies are found on copies of the model that are cut."""
    model = build(Residual)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sirfp.find_groups(model, X)
    assert earlier_plan(model) is None
    assert not any(vars(p) for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize(
    ("name", "meant"), [("keep_flop", "keep_flops"), ("optimiser", "optimizer"), ("step", "steps")]
)
def test_a_misspelt_argument_is_named(name, meant):
    with pytest.raises(sirfp.InputError, match=f"no argument '{name}' .did you mean .*{meant}"):
        sirfp.prune(build(Residual), X, "magnitude", **{name: 0.5})


def test_a_plan_shows_itself_in_one_line_and_as_a_table():
    plan = sirfp.prune(build(Residual), X, "magnitude", keep_flops=0.5)
    assert repr(plan).startswith("PruningPlan(magnitude, FLOPs ") and repr(plan).endswith(f"{len(plan.kept)} groups)")
    assert f"({plan.flops[1] / plan.flops[0]:.1%})" in repr(plan) and len(repr(plan)) < 100
    head, _, *rows = plan.table().splitlines()
    assert head.split() == ["group", "kept", "of", "share"] and len({len(row) for row in rows}) == 1
    for row, (name, kept) in zip(rows, plan.kept.items(), strict=True):
        share = f"{len(kept) / plan.channels[name]:.1%}"
        assert row.split() == [name, str(len(kept)), str(plan.channels[name]), share]


def test_numbers_of_any_size_are_short():
    plan = sirfp.PruningPlan({}, {}, {}, (148454400, 74200000), (11181642, 1900000), criterion="magnitude")
    assert repr(plan) == ("PruningPlan(magnitude, FLOPs 0.148 -> 0.074 G (50.0%), params 11.2 -> 1.9 M, 0 groups)")
    tiny = sirfp.PruningPlan({"a": (0,)}, {"a": 1}, {}, (12, 12), (3_000_000_000, 7))
    assert repr(tiny) == "PruningPlan(FLOPs 12 -> 12 (100.0%), params 3000 -> 0 M, 1 group)"
