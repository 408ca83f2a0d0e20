"""`sirfp.save` records which network of timm a model is, if it is one as timm builds it by default."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import sirfp
from sirfp.checkpoint import read_origin


def saved(model, tmp_path, keep=0.6, size=64, channels=3):
    plan = sirfp.prune(model.eval(), torch.zeros(1, channels, size, size), "magnitude", keep) if keep else None
    sirfp.save(tmp_path / "x.safetensors", model, plan)
    return read_origin(tmp_path / "x.safetensors")


@pytest.mark.parametrize("options", [{}, {"num_classes": 5}, {"num_classes": 3, "in_chans": 1}])
def test_networks_of_timm_are_recorded(tmp_path, options):
    model = timm.create_model("test_resnet", **options)
    origin = saved(model, tmp_path, channels=options.get("in_chans", 3))
    if "in_chans" in options:
        assert origin is None, "another number of channels than timm's data config has"
        return
    assert (origin.timm, origin.num_classes, origin.size) == ("test_resnet", model.num_classes, None)
    assert tuple(origin.preprocessing["mean"]) == tuple(model.default_cfg["mean"])


def test_a_dense_network_and_a_wrapped_one(tmp_path):
    model = timm.create_model("test_vit")
    assert saved(model, tmp_path, keep=None).timm == "test_vit"
    assert saved(nn.DataParallel(timm.create_model("test_resnet")), tmp_path, keep=None).timm == "test_resnet"


def test_a_new_classifier_counts(tmp_path):
    model = timm.create_model("test_resnet")
    model.reset_classifier(4)
    assert saved(model, tmp_path).num_classes == 4


@pytest.mark.parametrize(
    "model",
    [
        lambda: timm.create_model("resnet18", channels=(8, 16, 32, 64)),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)),
    ],
    ids=["other widths", "own code"],
)
def test_what_timm_does_not_build_by_default_is_not_recorded(tmp_path, model):
    assert saved(model(), tmp_path, keep=None) is None


def test_a_stranger_s_description_does_no_harm(tmp_path):
    model = timm.create_model("test_resnet")
    model.pretrained_cfg = {"architecture": "there is no such network"}
    assert saved(model, tmp_path, keep=None) is None
