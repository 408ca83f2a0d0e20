"""Attention loses whole heads: the pruned network equals the masked one, keeps its scale, and can be pruned again."""

import copy

import pytest
import timm
import torch
from cut_proofs import half_of
from marks import slow_but

import sirfp
import sirfp.channels.find
import sirfp.surgery.cut
import sirfp.verify
from sirfp.criteria import build_criterion
from sirfp.network.timm_attention import attention_kind
from sirfp.prune import plan_for

SMALL = {"img_size": 64, "num_classes": 5}
NETWORKS = {
    "deit_tiny_patch16_224": SMALL | {"embed_dim": 24, "depth": 2, "num_heads": 6},
    "swin_tiny_patch4_window7_224": SMALL | {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4},
    "pvt_v2_b0": {"num_classes": 5, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)},
    "pvt_v2_b2_li": {"num_classes": 5, "embed_dims": (16, 32, 32, 64), "depths": (1,) * 4, "num_heads": (1, 2, 4, 8)},
    "crossvit_tiny_240": {"num_classes": 5, "embed_dim": (16, 32), "depth": ((1, 1, 0),), "num_heads": (2, 4)},
}

QUICK = ["deit_tiny_patch16_224", "pvt_v2_b0"]
"""Fused weights of query, key and value, and weights of their own."""


@pytest.fixture(scope="module", params=slow_but(NETWORKS, *(name for name in NETWORKS if name != "pvt_v2_b2_li")))
def subject(request):
    """The name of a network, the network, two images, and the groups found in it."""
    torch.manual_seed(0)
    model = timm.create_model(request.param, **NETWORKS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 3, *((240,) * 2 if "cross" in request.param else (64,) * 2))
    kinds = {n: type(a) for n, a in attentions(model).items()}
    with torch.no_grad():
        expected = model(x)
    found = sirfp.channels.find_groups(model, x[:1])
    assert {n: type(a) for n, a in attentions(model).items()} == kinds, "finding groups leaves no trace"
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    return request.param, model, x, found


def attentions(model):
    return {name: module for name, module in model.named_modules() if attention_kind(module)}


def test_heads_go_whole_and_their_scale_stays(subject, tmp_path):
    name, model, x, found = subject
    assert {f.reason for f in found.frozen} <= {"it is the model's output", "it is indexed"}
    masked, pruned = copy.deepcopy(model), copy.deepcopy(model)
    plan = plan_for(found, half_of(found, 1, [group for group in found if not group.inexact]))
    sirfp.surgery.apply(pruned, plan)
    sirfp.verify.mask(masked, plan)
    assert sirfp.verify.compare(masked, pruned, x).relative < 1e-5
    before, now = attentions(model), attentions(pruned)
    assert sum(a.num_heads for a in now.values()) < sum(a.num_heads for a in before.values())
    assert all(now[n].scale == a.scale for n, a in before.items())
    sirfp.save(tmp_path / "small.safetensors", pruned, plan)
    loaded = timm.create_model(name, **NETWORKS[name]).eval()
    sirfp.load(tmp_path / "small.safetensors", loaded)
    with torch.no_grad():
        assert torch.equal(pruned(x), loaded(x))


@pytest.mark.parametrize("subject", slow_but(NETWORKS, *QUICK), indirect=True)
def test_the_last_head_loses_width(subject, known_groups):
    _, model, x, found = subject
    pruned = copy.deepcopy(model)
    known_groups(found, model)
    plan = sirfp.prune(pruned, x[:1], "random", 0.2)
    plan = plan.then(sirfp.prune(pruned, x[:1], "random", 0.1, seed=2))
    again = copy.deepcopy(model)
    sirfp.surgery.apply(again, plan)
    with torch.no_grad():
        assert torch.equal(pruned(x), again(x))


def test_the_criterion_sees_features_of_every_group(subject):
    _, model, _, found = subject
    blind = [group.name for group in found if not group.features]
    assert not blind, f"{blind} would be judged without looking"
    criterion = build_criterion("sirfp", model, found.groups)
    norms = [group for group in found if group.inexact]
    assert norms and all(feature.norm for group in norms for feature in group.features), "layer norms, as for MiT"
    assert all(f.module in criterion.averages for group in found for f in group.features)
