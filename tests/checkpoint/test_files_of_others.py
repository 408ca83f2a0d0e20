"""Weights under other owners' names; files for other classes; plans that are only the last of several."""

import copy
import pickle

import pytest
import torch
from torch import nn

import sirfp
from sirfp.budget.decision import choose
from sirfp.budget.target import Flops
from sirfp.checkpoint.dense import fill, read_weights, without_owner
from sirfp.errors import InputError
from sirfp.surgery.cut import apply
from sirfp.surgery.plan_and_cut import cut

X = torch.randn(2, 3, 12, 12)


def build(classes: int = 4, *, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), *([nn.Linear(16, classes)] if classes else []),
    )  # fmt: skip


def prefixed(prefix: str, model: nn.Module | None = None) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in (model or build(seed=1)).state_dict().items()}


FORMS = {
    "Lightning": lambda: {"state_dict": prefixed("model.")},
    "Lightning with a loss and a metric": lambda: {"state_dict": prefixed("net.") | {"loss.weight": torch.ones(4)}},
    "two owners": lambda: {"state_dict": prefixed("task.backbone.")},
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(build(seed=1)).state_dict(),
    "AveragedModel of a checkpoint": lambda: {
        "model_ema": torch.optim.swa_utils.AveragedModel(build(seed=1)).state_dict(), "model": build().state_dict()
    },
    "compiled under DDP in Lightning": lambda: {"state_dict": prefixed("module._orig_mod.model.")},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_other_trainers(form, tmp_path):
    torch.save(FORMS[form](), tmp_path / "w.pth")
    model = build()
    fill(model, read_weights(tmp_path / "w.pth"), "w.pth")
    assert torch.equal(model.eval()(X), build(seed=1).eval()(X))


def test_two_networks_under_other_names_are_not_guessed(tmp_path):
    both = prefixed("student.") | prefixed("teacher.")
    assert without_owner(both, build().state_dict()) is both
    with pytest.raises(InputError, match="'0.weight' is missing .* its first tensor is 'student.0.weight'"):
        fill(build(), both, "w.pth")


@pytest.mark.parametrize("classes", [7, 0])
def test_files_of_other_classes_say_what_to_do(classes, tmp_path):
    model = build()
    sirfp.save(tmp_path / "p.safetensors", model, sirfp.prune(model, X, "magnitude", keep_flops=0.5))
    fresh = build(classes)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(InputError, match="is the number of classes the same.*reset_classifier") as error:
        sirfp.load(tmp_path / "p.safetensors", fresh)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in fresh.state_dict().items())


def test_weights_of_other_classes_say_how_many():
    with pytest.raises(InputError, match="with the file's number of classes, 7, not 4"):
        fill(build(4), build(7).state_dict(), "w.pth")


def cut_alone(model, keep_flops, **limits):
    """One more cut of a model; returns the plan of this cut alone, as no function for users does."""
    found = sirfp.find_groups(model, X, **limits)
    scores = {group.name: torch.arange(group.size).float() for group in found}
    return cut(model, found, choose(model, X, found, scores, Flops(keep_flops)).keep)


def test_the_last_of_several_plans_is_not_saved_alone(tmp_path):
    model = build()
    first = sirfp.prune(model, X, "magnitude", keep_flops=0.8)
    sirfp.save(tmp_path / "first.safetensors", model, first)
    second = cut_alone(model, 0.7)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for plan, words in ((second, r"cut by several plans: .* first.then\(second\)"), (first, "does not lead to")):
            with pytest.raises(InputError, match=words):
                sirfp.save(tmp_path / "p.safetensors", other, plan)
        for plan in (first.then(second), None):
            sirfp.save(tmp_path / "p.safetensors", other, plan)
            fresh = build()
            assert sirfp.load(tmp_path / "p.safetensors", fresh) == first.then(second)
            assert torch.equal(fresh.eval()(X), other.eval()(X))
    sirfp.load(tmp_path / "first.safetensors", loaded := build())  # a file, then one more cut
    third = cut_alone(loaded, 0.7)
    with pytest.raises(InputError, match="several plans"):
        sirfp.save(tmp_path / "p.safetensors", loaded, third)
    sirfp.save(tmp_path / "p.safetensors", loaded, first.then(third))


def test_plans_that_cut_other_layers_are_joined_too(tmp_path):
    model = build()
    first = sirfp.prune(model, X, "magnitude", keep_flops=0.8, keep={"3": 1.0})
    second = cut_alone(model, 0.8, ignore=["0"])
    with pytest.raises(InputError, match="this plan does not cut it|this plan begins with"):
        sirfp.save(tmp_path / "p.safetensors", model, second)
    apply(fresh := build(), first)
    apply(fresh, second)
    sirfp.save(tmp_path / "p.safetensors", fresh, first.then(second))


@pytest.mark.parametrize("ending", ["pth", "pt", "bin", "onnx"])
def test_a_file_is_not_written_under_the_ending_of_another_format(tmp_path, ending):
    """`torch.load` could not read it."""
    with pytest.raises(InputError, match="of the format safetensors; give it the ending .safetensors"):
        sirfp.save(tmp_path / f"small.{ending}", nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert not list(tmp_path.iterdir())


def test_a_file_and_a_model_in_each_others_place_are_said(tmp_path):
    network, file = nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "small.safetensors"
    for place in (str(file), file):
        with pytest.raises(InputError, match=r"a file comes before the model: sirfp\.save\(file, model\)"):
            sirfp.save(network, place)
        with pytest.raises(InputError, match=r"a file comes before the model"):
            sirfp.load(network, place)
    for save in (sirfp.save, sirfp.load):
        with pytest.raises(InputError, match="the file must be named by a text or a Path, got NoneType"):
            save(None, network)
    assert not file.exists()
