"""A wrong cut is found although it changes the output by less than the tolerance for rounding errors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cut_proofs import prove
from torch import nn
from torchvision.models.video.swin_transformer import PatchEmbed3d, SwinTransformer3d

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SMALL = 3e-5
"""The share of the branch with the fault in the output: below the tolerance of the trial, which is 1.2e-4."""


class Behind(nn.Module):
    """A branch of small effect beside a convolution."""

    def __init__(self, operation):
        super().__init__()
        self.a, self.b, self.direct = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(3, 8, 3)
        self.operation = operation

    def forward(self, x):
        return self.direct(x) + SMALL * self.b(self.operation(self.a(x).relu()))


aten = torch.ops.aten  # in calls of operators, sizes cannot be replaced
WRONG = {
    "width": lambda x: x * x.shape[1],
    "shuffle": lambda x: aten.view(x.contiguous(), [len(x), -1, 4, *x.shape[2:]]).transpose(1, 2).reshape(x.shape),
    "parts": lambda x: torch.cat(aten.split(x, 8, 1)[::-1], 1),
}
RIGHT = {
    "nothing": lambda x: x,
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "sigmoid": lambda x: x.sigmoid(),
    "norm": lambda x: F.normalize(x + 1, dim=1),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_cut_is_found_behind_a_small_factor(wrong):
    torch.manual_seed(0)
    found = find_groups(Behind(WRONG[wrong]).eval(), X)
    assert [g.name for g in found] == []
    assert "cut, the model" in {f.name: f.reason for f in found.frozen}["a"]


@pytest.mark.parametrize("right", RIGHT)
def test_a_right_cut_behind_a_small_factor_stays(right):
    torch.manual_seed(0)
    assert [g.name for g in find_groups(Behind(RIGHT[right]).eval(), X)] == ["a"]


class Attention(nn.Module):
    """Attention whose scale follows from the number of heads and the width of its input."""

    def __init__(self, width: int = 24, heads: int = 3):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q * (c // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, n, c))


class ByAttribute(Attention):
    """Attention whose scale is an attribute that also stands in its calls, as in YOLO-World and PVT v2."""

    def __init__(self, width: int = 24, heads: int = 3):
        super().__init__(width, heads)
        self.head_width = width // heads

    def forward(self, x):
        q, k, v = (part.view(*x.shape[:2], -1, self.head_width).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = (q @ k.transpose(-2, -1) / self.head_width**0.5).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Tokens(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(6, 24), attention, nn.Linear(24, 5)

    def forward(self, x):
        return self.head(self.attention(self.embed(x)).mean(1))


@pytest.mark.parametrize("heads, std", [(1, 0.02), (3, 0.02), (1, 0.002)])
@pytest.mark.parametrize("kind", [Attention, ByAttribute])
def test_a_scale_that_follows_from_the_number_of_heads_is_right_or_the_heads_stay(kind, heads, std):
    """Weights of an untrained network make scores so small that a wrong scale hardly shows; trained ones do not."""
    torch.manual_seed(0)
    model, x = Tokens(kind(heads=heads)).eval(), torch.randn(2, 10, 6)
    nn.init.normal_(model.attention.qkv.weight, std=std)
    found = find_groups(model, x)
    keep = torch.ones(found.atoms, dtype=torch.bool).numpy()
    for group in found:
        keep[found.spans[group.name]][: group.size // 3] = False
    plan = plan_for(found, keep)
    with torch.no_grad():
        model.attention.qkv.weight.mul_(2 / std)  # as if it was trained
    cut, masked = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    apply(cut, plan)
    mask(masked, plan)
    assert compare(masked, cut, x.double(), plan).relative < 1e-10


def test_attention_of_videos_loses_whole_heads():
    torch.manual_seed(0)
    model = SwinTransformer3d([2, 4, 4], 12, [2], [3], [2, 4, 4], num_classes=4, patch_embed=PatchEmbed3d)
    found = prove(model, torch.randn(1, 3, 4, 20, 16), exact=False)
    heads = [g for g in found if g.name.endswith("attn.qkv")]
    assert [g.size for g in heads] == [3, 3]
    dense = model.double().eval()
    keep = torch.ones(found.atoms, dtype=torch.bool).numpy()
    for group in found:
        keep[found.spans[group.name]][: group.size // 3] = False
    plan, cut, masked = plan_for(found, keep), copy.deepcopy(dense), copy.deepcopy(dense)
    apply(cut, plan)
    mask(masked, plan)
    assert compare(masked, cut, torch.randn(1, 3, 4, 20, 16).double(), plan).relative < 1e-10
