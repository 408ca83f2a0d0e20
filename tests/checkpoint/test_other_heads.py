"""Pruned classifiers as backbones: other classes, no classifier, feature maps, in networks of any library."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import sirfp
from sirfp.errors import InputError

timm = pytest.importorskip("timm")

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def saved(folder, name: str, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **options).eval()
    plan = sirfp.prune(model, X[:1], "magnitude", keep_flops=0.5, partitions="*")
    sirfp.save(folder / "p.safetensors", model, plan)
    return folder / "p.safetensors", model


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("resnet"), "resnet10t")


def fresh(**options) -> nn.Module:
    return timm.create_model("resnet10t", **options).eval()


def test_a_network_with_other_classes_keeps_its_own_classifier(resnet, caplog):
    file, small = resnet
    model = fresh(num_classes=7)
    head = model.fc.weight.detach().clone()
    with caplog.at_level(logging.WARNING):
        plan = sirfp.load(file, model)
    assert "its classifier 'fc', of 10 classes, is not loaded: the model's, of 7, keeps its own weights" in caplog.text
    assert torch.equal(model.forward_features(X), small.forward_features(X)) and model(X).shape == (2, 7)
    kept = next(cut.keep for cut in plan.cuts if ("fc.weight", 1) in cut.tensors)
    assert torch.equal(model.fc.weight, head[:, list(kept)])


def test_a_network_without_a_classifier_gives_the_features(resnet, caplog):
    file, small = resnet
    model = fresh(num_classes=0)
    sirfp.load(file, model)
    assert "the model has none" in caplog.text
    assert torch.equal(model(X), small.forward_head(small.forward_features(X), pre_logits=True))


def test_feature_maps_are_those_of_the_classifier(resnet):
    file, small = resnet
    model = fresh(features_only=True)
    sirfp.load(file, model)
    maps = model(X)
    assert torch.equal(maps[-1], small.forward_features(X))
    assert model.feature_info.channels() == [each.shape[1] for each in maps]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnext_atto", {}),  # stages.0 becomes stages_0
        ("mobilenetv3_small_050", {}),  # a class of its own, without the layers after the last map
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 4}),  # the network lies in `model`
    ],
)
def test_feature_maps_whose_layers_have_other_names(name, options, tmp_path):
    file, small = saved(tmp_path, name, **options)
    model = timm.create_model(name, features_only=True, **options).eval()
    plan = sirfp.load(file, model)
    maps = model(X)
    assert model.feature_info.channels() == [each.shape[1] for each in maps]
    wanted = small.forward_intermediates(X, intermediates_only=True)
    assert torch.allclose(maps[-1], wanted[-1], atol=1e-6)
    sirfp.save(tmp_path / "maps.safetensors", model, plan)
    again = timm.create_model(name, features_only=True, **options).eval()
    sirfp.load(tmp_path / "maps.safetensors", again)
    assert torch.equal(again(X)[-1], maps[-1])


@pytest.mark.parametrize("classes", [10, 3])
def test_head_gives_a_new_classifier(classes, resnet, tmp_path):
    file, small = resnet
    model = fresh(num_classes=10)
    plan = sirfp.load(file, model, head=classes)
    assert model(X).shape == (2, classes) and model.num_classes == classes
    assert torch.equal(model.forward_features(X), small.forward_features(X))
    assert classes != 10 or not torch.equal(model.fc.weight, small.fc.weight)
    model(X).sum().backward()
    sirfp.save(tmp_path / "new.safetensors", model, plan)
    again = fresh(num_classes=classes)
    sirfp.load(tmp_path / "new.safetensors", again)
    assert torch.equal(again(X), model(X))


def build(classes: int = 4, last: type[nn.Module] = nn.Linear) -> nn.Sequential:
    torch.manual_seed(0)
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if last is nn.Linear else []
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), *end,
        *([last(16, classes, *(() if last is nn.Linear else (1,)))] if classes else []),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("last", [nn.Linear, nn.Conv2d])
@pytest.mark.parametrize("built", [4, 9])
@pytest.mark.parametrize("head", [0, 6])
def test_networks_of_any_library(head, built, last, tmp_path):
    x = torch.randn(2, 3, 12, 12)
    small = build(last=last)
    sirfp.save(tmp_path / "p.safetensors", small, sirfp.prune(small, x, "magnitude", keep_flops=0.5))
    model = build(built, last)
    plan = sirfp.load(tmp_path / "p.safetensors", model, head=head)
    features = small[:-1](x)
    assert torch.equal(model[:-1](x), features)
    assert model(x).shape[1] == (head or features.shape[1]) and type(model[-1]) is (last if head else nn.Identity)
    model(x).sum().backward()
    sirfp.save(tmp_path / "new.safetensors", model, plan)
    again = build(head, last)
    sirfp.load(tmp_path / "new.safetensors", again)
    assert torch.equal(again(x), model(x))


def test_a_network_built_without_its_head_is_loaded_by_head_0(tmp_path):
    x = torch.randn(2, 3, 12, 12)
    small = build()
    sirfp.save(tmp_path / "p.safetensors", small, sirfp.prune(small, x, "magnitude", keep_flops=0.5))
    model = build(0)
    sirfp.load(tmp_path / "p.safetensors", model, head=0)
    assert torch.equal(model(x), small[:-1](x))
    with pytest.raises(InputError, match="one linear or convolutional layer .* this one has none"):
        sirfp.load(tmp_path / "p.safetensors", build(0), head=3)


@pytest.mark.parametrize("head", [-1, True, 2.5, "fc"])
def test_other_heads_are_refused(head, resnet):
    with pytest.raises(InputError, match="head must be a number of classes, 0 to leave the head out"):
        sirfp.load(resnet[0], fresh(num_classes=10), head=head)


def test_another_network_of_timm_is_still_refused(resnet):
    with pytest.raises(InputError, match="is for another model"):
        sirfp.load(resnet[0], timm.create_model("resnet14t", num_classes=7))
    with pytest.raises(InputError, match="is for another model"):
        sirfp.load(resnet[0], timm.create_model("resnet14t", features_only=True))
