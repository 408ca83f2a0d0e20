"""The function `sirfp.prune`: its defaults are those of the command line and of training runs, and it hides nothing."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from small_networks import INPUT, OneLayer, Residual, build, mean_square
from torch import nn

import sirfp
from sirfp.budget.limits import Limits
from sirfp.budget.target import KEEP_FLOPS, Target
from sirfp.cli import parse
from sirfp.config import load_config
from sirfp.criteria import CRITERIA
from sirfp.criteria.calibration import default_criterion, gives_gradients
from sirfp.hooks.registry import criterion_options
from sirfp.session import PruningSession

SIGNATURE = {p.name: p.default for p in inspect.signature(sirfp.prune).parameters.values()}
BATCHES = [torch.randn(INPUT) for _ in range(2)]


class Segmentor(nn.Module):
    """Called with Detectron2's `list[dict]`: returns its loss in training, maps otherwise."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, batch):
        maps = self.network(torch.stack([item["image"] for item in batch]))
        if self.training:
            return {"loss": nn.functional.cross_entropy(maps, torch.stack([item["sem_seg"] for item in batch]))}
        return [{"sem_seg": one} for one in maps]


def _items(annotated: bool) -> list[dict]:
    labels = {"sem_seg": torch.randint(0, 4, (16, 16))} if annotated else {}
    return [{"image": torch.randn(3, 16, 16), "height": 16, "width": 16, **labels} for _ in range(2)]


def test_the_three_defaults_are_the_same():
    args = parse(["prune", "--timm", "resnet18", "-o", "small.safetensors"])
    node = load_config("").SIRFP
    assert SIGNATURE["min_keep"] == args.min_keep == node.MIN_KEEP == Limits().min_keep
    assert SIGNATURE["round_to"] == args.round_to == node.ROUND_TO == Limits().round_to
    assert list(SIGNATURE["ignore"]) == args.ignore == node.IGNORE == list(Limits().ignore)
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


def test_the_default_criterion_is_the_joint_one_where_there_are_gradients():
    assert SIGNATURE["criterion"] is parse(["prune", "-o", "x"]).criterion is None
    model = build(Residual)
    session = PruningSession(model, BATCHES[0])
    assert session.criterion == load_config("").SIRFP.CRITERION == default_criterion() == "sirfp_joint"
    assert session.period == load_config("").SIRFP.ACCUMULATE_PERIOD
    with_loss = sirfp.prune(model, BATCHES[0], calibration=iter(BATCHES), loss=mean_square)
    without = sirfp.prune(build(Residual), BATCHES[0], calibration=iter(BATCHES))
    assert (with_loss.criterion, without.criterion) == ("sirfp_joint", "sirfp")


@pytest.mark.parametrize(("annotated", "criterion"), [(True, "sirfp_joint"), (False, "sirfp")])
def test_annotated_batches_of_detectron2_have_gradients(annotated, criterion):
    batch = _items(annotated)
    assert gives_gradients(batch) is annotated
    assert sirfp.prune(Segmentor(), batch, keep_flops=0.6, calibration=[batch, batch]).criterion == criterion


def test_every_batch_is_looked_at_once_whatever_is_read_ahead(monkeypatch):
    for reconstruction in (0, 1, 5):
        seen = []

        def loss(model, batch, seen=seen):
            seen.append(batch)
            return mean_square(model, batch)

        monkeypatch.setattr(sys.modules["sirfp.prune"], "take_moments", lambda *_: {})
        sirfp.prune(build(Residual), BATCHES[0], calibration=iter(BATCHES), loss=loss, reconstruction=reconstruction)
        assert [any(one is batch for batch in BATCHES) for one in seen] == [True, True] and seen[0] is not seen[1]


def test_without_calibration_the_default_asks_for_it():
    with pytest.raises(sirfp.InputError, match="'sirfp' needs features: give calibration batches"):
        sirfp.prune(OneLayer([[1.0, 0, 0], [0, 1.0, 0]]), BATCHES[0])


def test_the_name_hides_no_function_of_its_module():
    module = sys.modules["sirfp.prune"]
    own = {n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
    assert own == {"prune"} and sirfp.prune is module.prune
    for name in ("calibrate", "cut", "cut_to", "plan_for", "refined"):
        home = sys.modules[getattr(module, name).__module__]
        package = sys.modules[home.__name__.rpartition(".")[0]]
        assert getattr(package, home.__name__.rpartition(".")[2]) is home, "its module can be reached by its name"
