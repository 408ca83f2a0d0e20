"""The function `sirfp.prune`: its defaults are those of the command line and of training runs, and it hides nothing."""

from __future__ import annotations

import copy
import inspect
import sys

import pytest
import torch
from small_networks import INPUT, OneLayer, Residual, build, mean_square
from torch import nn

import sirfp
from sirfp.budget.evidence import default_widths
from sirfp.budget.limits import Limits
from sirfp.budget.target import KEEP_FLOPS, Target
from sirfp.cli import parse
from sirfp.config import load_config
from sirfp.criteria import CRITERIA
from sirfp.criteria.calibration import default_criterion
from sirfp.hooks.registry import criterion_options
from sirfp.session import PruningSession

SIGNATURE = {p.name: p.default for p in inspect.signature(sirfp.prune).parameters.values()}
BATCHES = [torch.randn(INPUT) for _ in range(2)]


def test_the_three_defaults_are_the_same():
    args = parse(["prune", "--timm", "resnet18", "-o", "small.safetensors"])
    node = load_config("").SIRFP
    assert SIGNATURE["min_keep"] == args.min_keep == node.MIN_KEEP == Limits().min_keep
    assert SIGNATURE["round_to"] == args.round_to == node.ROUND_TO == Limits().round_to
    assert list(SIGNATURE["ignore"]) == args.ignore == node.IGNORE == list(Limits().ignore)
    assert SIGNATURE["keep"] is None and not args.keep and not node.KEEP and Limits().keep == ()
    assert SIGNATURE["partitions"] == tuple(node.PARTITIONS) == Limits().partitions and not hasattr(args, "partitions")
    assert SIGNATURE["reconstruction"] == args.reconstruction == node.RECONSTRUCTION_ITERS
    assert SIGNATURE["bias_correction"] is (not args.no_bias_correction) is node.BIAS_CORRECTION
    assert SIGNATURE["seed"] == args.seed == node.SEED
    assert Limits.from_config(load_config("")) == Limits()


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_a_run_has_the_defaults_of_a_criterion(name):
    """The command line has the constructor's defaults, because it passes only options that are given."""
    options = criterion_options(load_config("", ["SIRFP.CRITERION", name]))
    assert options == {key: CRITERIA[name].defaults()[key] for key in options}


def test_the_default_budget_is_one_number():
    args = parse(["prune", "--timm", "resnet18", "-o", "small.safetensors"])
    assert args.keep_flops is args.keep_params is args.keep_latency is SIGNATURE["keep_flops"] is None
    assert sirfp.prune(build(Residual), BATCHES[0], "magnitude").budget == ("flops", KEEP_FLOPS)
    assert f"(default {KEEP_FLOPS} " in _help() and f"; {KEEP_FLOPS} if no budget" in sirfp.prune.__doc__
    assert Target.from_config(load_config("")).share == 1, "a config without a budget is a dense run"


def _help() -> str:
    from sirfp.cli import build_parser

    return " ".join(build_parser()[1]["prune"].format_help().split())


def test_the_default_criterion_is_the_set_wise_one_with_widths_by_curves():
    assert SIGNATURE["criterion"] is parse(["prune", "-o", "x"]).criterion is None
    assert SIGNATURE["widths"] is parse(["prune", "-o", "x"]).widths is None and not load_config("").SIRFP.WIDTHS
    session = PruningSession(build(Residual), BATCHES[0])
    assert session.criterion == load_config("").SIRFP.CRITERION == default_criterion() == "sirfp_setwise"
    assert session.period == load_config("").SIRFP.ACCUMULATE_PERIOD
    assert sirfp.prune(build(Residual), BATCHES[0], calibration=iter(BATCHES)).criterion == "sirfp_setwise"
    assert default_widths("sirfp_setwise", BATCHES * 4) == "curves"
    assert default_widths("sirfp_setwise", BATCHES[:1]) == default_widths("sirfp", BATCHES * 4) == "ranking"


def test_every_batch_is_looked_at_once_whatever_is_read_ahead(monkeypatch):
    for reconstruction in (0, 1, 5):
        seen = []

        def loss(model, batch, seen=seen):
            seen.append(batch)
            return mean_square(model, batch)

        monkeypatch.setattr(sys.modules["sirfp.budget.evidence"], "take_moments", lambda *_: {})
        how = {"loss": loss, "reconstruction": reconstruction}
        sirfp.prune(build(Residual), BATCHES[0], "sirfp_joint", calibration=iter(BATCHES), **how)
        assert len(seen) == 2 and all(torch.equal(one, batch) for one, batch in zip(seen, BATCHES, strict=True))


def test_without_calibration_the_default_asks_for_it():
    with pytest.raises(sirfp.InputError, match="'sirfp_setwise' looks at images: give calibration batches"):
        sirfp.prune(OneLayer([[1.0, 0, 0], [0, 1.0, 0]]), BATCHES[0], keep_flops=0.6)


def test_the_name_hides_no_function_of_its_module():
    module = sys.modules["sirfp.prune"]
    own = {n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
    assert own == {"prune"} and sirfp.prune is module.prune
    for name in ("calibrate", "cut", "cut_to", "plan_for", "refined"):
        home = sys.modules[getattr(module, name).__module__]
        package = sys.modules[home.__name__.rpartition(".")[0]]
        assert getattr(package, home.__name__.rpartition(".")[2]) is home, "its module can be reached by its name"


def test_min_keep_holds_over_all_cuts_of_one_pruning():
    model = build(Residual)
    plan = sirfp.prune(model, BATCHES[0], "magnitude", 0.3, min_keep=0.25, steps=3)
    assert plan.flops[1] <= 0.3 * plan.flops[0]
    for name, kept in plan.kept.items():
        assert len(kept) >= 0.25 * plan.channels[name], name


def test_min_keep_is_a_share_of_the_dense_model_that_was_pruned_before(tmp_path):
    """Of a model that is still in memory, and of one that was loaded."""
    model = build(Residual)
    sirfp.prune(model, BATCHES[0], "magnitude", 0.6)
    sirfp.save(tmp_path / "once.safetensors", model)
    sirfp.load(tmp_path / "once.safetensors", loaded := build(Residual))
    for one in (model, loaded):
        with pytest.raises(sirfp.InputError, match="cannot be reached"):
            sirfp.prune(one, BATCHES[0], "magnitude", 0.2, min_keep=0.5)
        plan = sirfp.prune(one, BATCHES[0], "magnitude", 0.3, min_keep=0.25)
        assert all(len(kept) >= 0.25 * plan.channels[name] for name, kept in plan.kept.items())


@pytest.mark.parametrize("steps", [1, 6])
def test_a_budget_out_of_reach_is_said_before_the_first_cut(monkeypatch, steps):
    model = build(Residual)
    monkeypatch.setattr(PruningSession, "_cut", lambda *_: pytest.fail("the model was cut"))
    with pytest.raises(sirfp.InputError, match=r"^the budget cannot be reached: 0.05 of the FLOPs .*MIN_KEEP 0.5\)$"):
        sirfp.prune(model, BATCHES[0], "magnitude", 0.05, min_keep=0.5, steps=steps)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"keep": {"stem": 0.5}, "steps": 2}, "steps 2 divides the way to a budget"),
        ({"divergence": lambda a, b: (a - b).square().mean(), "keep_flops": 0.5}, "a ranking decides the widths"),
    ],
)
def test_arguments_without_an_effect_are_refused(given, says):
    model = build(Residual)
    with pytest.raises(sirfp.InputError, match=says):
        sirfp.prune(model, BATCHES[0], "magnitude", **given)
    assert not hasattr(model, "_sirfp_plan")


WRONG_KINDS = [
    ({"ignore": [nn.Linear(2, 2)]}, r"ignore must be names of modules, such as .*, got Linear"),
    ({"ignore": 3}, r"ignore must be names of modules, such as .*, got int"),
    ({"partitions": [None]}, r"partitions must be names of modules, such as .*, got NoneType"),
    ({"reconstruction": -1}, "reconstruction must be a whole number of at least 0, got -1"),
    ({"reconstruction": 2.5}, "reconstruction must be a whole number of at least 0, got 2.5"),
    ({"steps": 1.5}, "steps must be a whole number of at least 1, got 1.5"),
    ({"steps": "two"}, "steps must be a whole number of at least 1, got 'two'"),
    ({"optimizer": 3}, "optimizer must be an optimizer of PyTorch, got int"),
    ({"also": None}, "also must be a list of models, got NoneType"),
    ({"bias_correction": "no"}, "bias_correction must be True or False, got 'no'"),
    ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
    ({"seed": None}, "seed must be a whole number of at least 0, got None"),
    ({"seed": 1.5}, "seed must be a whole number of at least 0, got 1.5"),
    ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ({"seed": 1 << 40}, r"seed must be below 2\^31, got 1099511627776"),
]


@pytest.mark.parametrize(("given", "says"), WRONG_KINDS)
def test_arguments_of_a_wrong_kind_are_refused_in_one_line(given, says):
    for call in (sirfp.prune, sirfp.Pruner):
        with pytest.raises(sirfp.InputError, match=f"^{says}$"):
            call(build(Residual), BATCHES[0], criterion="magnitude", **given)
    if given.keys() <= {"ignore", "reconstruction", "seed"}:
        with pytest.raises(sirfp.InputError, match=f"^{says}$"):
            sirfp.sensitivity(build(Residual), BATCHES[0], calibration=BATCHES, **given)


def test_a_single_model_may_be_given_as_also():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    average = copy.deepcopy(model)  # which can be iterated over, as a list can
    sirfp.prune(model, BATCHES[0], "magnitude", keep_flops=0.5, also=average, bias_correction=False)
    assert average[0].out_channels == model[0].out_channels < 8


def test_example_inputs_without_images_are_refused():
    with pytest.raises(sirfp.InputError, match="no FLOPs to keep a share of: are they empty?"):
        sirfp.prune(build(Residual), BATCHES[0][:0], "magnitude", keep_flops=0.5)


@pytest.mark.parametrize("criterion", ["random", "magnitude", "sirfp", None])
@pytest.mark.parametrize("part", ["weight", "running_mean"])
def test_weights_that_are_not_finite_are_refused(criterion, part):
    """Without the check some criteria give scores, and the network is cut by chance."""
    model = build(Residual)
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    name = next(name for name in found if name.endswith(part))
    with torch.no_grad():
        found[name].view(-1)[0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    for call in (sirfp.prune, sirfp.sensitivity):
        with pytest.raises(sirfp.InputError, match=f"^the values of '{name}' are not finite"):
            call(model, BATCHES[0], criterion=criterion, calibration=BATCHES)
    assert all(torch.equal(before[n].nan_to_num(), t.nan_to_num()) for n, t in model.state_dict().items())


def test_masks_may_be_infinite():
    model = build(Residual)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf))
    assert sirfp.prune(model, BATCHES[0], "magnitude", keep_flops=0.5).cuts
