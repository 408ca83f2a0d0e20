"""timm can use a pruned network: its attributes are true, and its classifier can be replaced."""

import pytest
import timm
import torch
from marks import slow_but

import sirfp
import sirfp.channels.find
import sirfp.surgery.cut

NETWORKS = ["test_resnet", "test_vit", "test_efficientnet", "mobilenetv3_small_050", "convnext_atto", "skresnet18"]
QUICK = ["test_resnet", "test_vit", "mobilenetv3_small_050"]
"""Maps, tokens, and a layer between the features and the classifier."""


@pytest.mark.parametrize("name", slow_but(NETWORKS, *QUICK))
def test_widths_are_true_after_loading(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = max(64, model.default_cfg["input_size"][-1] if "vit" in name else 64)
    x = torch.randn(2, 3, size, size)
    plan = sirfp.prune(model, x[:1], "random", 0.5)
    sirfp.save(tmp_path / "small.safetensors", model, plan)
    loaded = timm.create_model(name).eval()
    sirfp.load(tmp_path / "small.safetensors", loaded)
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))
        features = loaded.forward_features(x)
        hidden = loaded.forward_head(features, pre_logits=True)
        maps = loaded.forward_intermediates(x, intermediates_only=True)
    assert loaded.num_features == model.num_features == features.shape[1 if features.dim() == 4 else 2]
    assert loaded.head_hidden_size == model.head_hidden_size == hidden.shape[-1]
    info = loaded.feature_info
    assert [entry["num_chs"] for entry in info] == [entry["num_chs"] for entry in model.feature_info]
    told = [entry["num_chs"] for entry in info]
    if len(told) == len(maps):
        assert told == [one.shape[1] for one in maps]
    loaded.reset_classifier(7)
    loaded(x).sum().backward()
    assert loaded(x).shape == (2, 7)


def test_a_second_pruning_announces_the_widths_of_both():
    torch.manual_seed(0)
    model, x = timm.create_model("test_resnet").eval(), torch.randn(1, 3, 64, 64)
    plan = sirfp.prune(model, x, "random", 0.7)
    plan = plan.then(sirfp.prune(model, x, "random", 0.35))
    fresh = timm.create_model("test_resnet")
    sirfp.surgery.apply(fresh, sirfp.PruningPlan.from_json(plan.to_json()))
    assert fresh.num_features == model.num_features == model.fc.in_features < 512
    assert fresh.feature_info == model.feature_info


@pytest.mark.parametrize("name", ["skresnet18", "res2net50_26w_4s", "test_vit"])
def test_blocks_with_a_size_of_their_own_are_cut(name):
    model = timm.create_model(name, **({} if "vit" in name else {"layers": (2, 1, 1, 1)})).eval()
    size = 160 if "vit" in name else 64
    found = sirfp.channels.find_groups(model, torch.randn(1, 3, size, size))
    assert {f.reason for f in found.frozen} == {"it is the model's output"}


@pytest.mark.parametrize("name", slow_but(["test_resnet", "mobilenetv3_small_050", "test_vit", "pvt_v2_b0"], *QUICK))
def test_a_network_of_features_only_tells_its_widths(name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).eval()
    x = torch.randn(2, 3, *((160,) * 2 if "vit" in name else (64,) * 2))
    dense = model.feature_info.channels()
    plan = sirfp.prune(model, x[:1], "random", 0.5)
    sirfp.save(tmp_path / "small.safetensors", model, plan)
    loaded = timm.create_model(name, features_only=True).eval()
    sirfp.load(tmp_path / "small.safetensors", loaded)
    with torch.no_grad():
        maps = loaded(x)
    assert [one.shape[1] for one in maps] == loaded.feature_info.channels() == dense, "outputs are not cut"
    assert plan.flops[1] < plan.flops[0]


def test_a_pruned_file_of_a_classifier_tells_outsiders_its_widths(tmp_path):
    torch.manual_seed(0)
    small = {"depths": (1, 1, 1, 1)}
    model, x = timm.create_model("pvt_v2_b0", **small).eval(), torch.randn(2, 3, 64, 64)
    sirfp.save(tmp_path / "small.safetensors", model, sirfp.prune(model, x[:1], "random", 0.4))
    loaded = timm.create_model("pvt_v2_b0", **small).eval()
    sirfp.load(tmp_path / "small.safetensors", loaded)
    maps = loaded.forward_intermediates(x, intermediates_only=True)
    assert [one.shape[1] for one in maps] == [entry["num_chs"] for entry in loaded.feature_info]
    assert loaded.forward_features(x).shape[1] == loaded.num_features < 256
    loaded.reset_classifier(5)
    assert loaded(x).shape == (2, 5)
