"""Copies for trial cuts: which layers they share with the model, and that they compute what whole copies do."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from marks import slow_but
from torch import nn

from sirfp.channels import find_groups
from sirfp.network.strided_pointwise import is_guarded
from sirfp.surgery.partial_copy import partial_copy
from sirfp.surgery.plan_and_cut import cut_copy, touched_modules


@pytest.mark.parametrize("name", slow_but(["resnet10t", "tf_efficientnet_lite0", "test_vit"], "resnet10t", "test_vit"))
def test_a_copy_that_shares_layers_computes_the_same_and_leaves_the_model_as_it_was(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).eval()
    size = 160 if "vit" in name else 64
    images = torch.randn(2, 3, size, size)
    found = find_groups(model, images, trial=False)
    before = copy.deepcopy(model.state_dict())
    attributes = {n: repr(m) for n, m in model.named_modules()}
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    for group in found.groups[:3] + found.groups[-3:]:
        keep = np.ones(found.atoms, dtype=bool)
        keep[found.spans[group.name]][: group.size // 2] = False
        whole, shared = (cut_copy(model, found, keep, share_layers=share) for share in (False, True))
        with torch.no_grad():
            assert torch.equal(whole(images), shared(images)), group.name
        own = {id(module) for module in model.modules()}
        common = [name for name, module in shared.named_modules() if id(module) in own]
        assert len(common) > len(own) / 3
        assert not set(common) & touched_modules(found, keep)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {n: repr(m) for n, m in model.named_modules()} == attributes
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()} == hooks


class Odd(nn.Module):
    """Layers that must not be shared: with a hook, with a reference to another, and one that a cut would guard."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.plain = nn.Conv2d(3, 4, 3, padding=1)
        self.hooked = nn.Conv2d(12, 12, 1)
        self.hooked.register_forward_hook(lambda module, inputs, output: output * 2)
        self.referring: Any = nn.ReLU()
        self.referring.other = [self.first]
        self.strided = nn.Conv2d(4, 4, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.referring(self.hooked(self.first(x))).mean() + self.strided(self.plain(x)).mean()


def test_layers_with_hooks_references_or_a_guard_to_come_are_copied():
    model = Odd()
    copied = partial_copy(model, {"first.weight"}, {"first"})
    assert copied.plain is model.plain
    for name in ("first", "hooked", "referring", "strided"):
        assert getattr(copied, name) is not getattr(model, name)
    assert copied.referring.other[0] is copied.first
    assert copied.first.weight is not model.first.weight and copied.first.bias is model.first.bias
    assert not is_guarded(model.strided)


def test_without_names_of_modules_all_are_copied():
    model = Odd()
    copied = partial_copy(model, {"first.weight"})
    assert not {id(module) for module in model.modules()} & {id(module) for module in copied.modules()}
    assert copied.plain.weight is model.plain.weight


class Normed(nn.Module):
    """Local response norms, which a cut changes although they hold no tensors: alone, in a block, and used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(n, 12, 3, padding=1) for n in (3, 12, 12))
        self.norm = nn.LocalResponseNorm(3)
        self.block = nn.Sequential(nn.ReLU(), nn.LocalResponseNorm(3))
        self.alias = nn.Sequential(nn.Identity(), self.block[1])
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.alias(self.third(self.block(self.second(self.norm(self.first(x)))))))


def test_layers_without_tensors_that_a_cut_changes_are_copied_with_all_that_contain_them():
    torch.manual_seed(0)
    model, images = Normed().eval(), torch.randn(2, 3, 8, 8)
    found = find_groups(model, images)
    assert len(found.groups) == 2
    before = repr(model)
    for group in found:
        keep = np.ones(found.atoms, dtype=bool)
        keep[found.spans[group.name]][::2] = False
        whole, shared = (cut_copy(model, found, keep, share_layers=share) for share in (False, True))
        assert repr(model) == before
        with torch.no_grad():
            assert torch.equal(whole(images), shared(images))
