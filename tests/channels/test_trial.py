"""The trial freezes exactly the groups whose cut makes a copy fail or compute something else."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from small_networks import INPUT, build
from torch import nn

from sirfp.channels import find_groups
from sirfp.channels.other_weights import randomise_constants
from sirfp.channels.rehearsal import CutCopy
from sirfp.errors import InputError


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 18, 3, padding=1), nn.BatchNorm2d(18)
        self.b, self.head = nn.Conv2d(18, 12, 3, padding=1), nn.Conv2d(12, 4, 1)

    def between(self, x):
        return x

    def forward(self, x):
        return self.head(self.b(self.between(self.norm(self.a(x)))).relu())


class FixedParts(Between):
    """Splits into parts of a fixed size, read by pointwise operations only: a cut changes their number or size.

    It calls the operator, so the size cannot be replaced.
    """

    def between(self, x):
        return torch.cat([part * (i + 1) for i, part in enumerate(torch.ops.aten.split(x, 6, 1))], dim=1)


class ByWidth(Between):
    def between(self, x):
        return x / x.shape[1]


class BranchesOnWidth(Between):
    def between(self, x):
        return x.sigmoid() if x.shape[1] >= 18 else x


class ScaledByWidth(Between):
    """Attention over positions whose scale is the root of the width."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Conv2d(18, 8, 1), nn.Conv2d(18, 8, 1)

    def between(self, x):
        q, k = self.q(x).flatten(2), self.k(x).flatten(2)
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return (x.flatten(2) @ weights).view_as(x)


class HiddenByAScale(Between):
    """A scale that starts at 1e-6 hides a wrong cut."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((18, 1, 1), 1e-6))

    def between(self, x):
        return x / x.shape[1]

    def forward(self, x):
        x = self.norm(self.a(x))
        return self.head(self.b(x + self.scale * self.between(x)))


@pytest.mark.parametrize(
    ("kind", "hard"),
    [(FixedParts, "a"), (ByWidth, "a"), (BranchesOnWidth, "a"), (ScaledByWidth, "q"), (HiddenByAScale, "a")],
)
def test_what_runs_but_computes_something_else_is_frozen(kind, hard):
    found = find_groups(build(kind), torch.randn(INPUT))
    reasons = {f.name: f.reason for f in found.frozen}
    assert "computes another" in reasons[hard]
    assert "b" in [g.name for g in found]


class Regrouped(Between):
    """A mean over sets of three channels, a size in the code: after a cut the sets have other channels.

    It calls the operator, so the size cannot be replaced.
    """

    def between(self, x):
        sets = torch.ops.aten.view(x, [len(x), -1, 3, *x.shape[2:]])
        return (sets - sets.mean(2, keepdim=True)).flatten(1, 2)


class Grouped(Between):
    """A mean over three sets of channels: after a cut there are still three sets."""

    def between(self, x):
        sets = x.unflatten(1, (3, -1))
        return (sets - sets.mean(2, keepdim=True)).flatten(1, 2)


class Elastic(Between):
    """The number of channels under a mean depends on the values."""

    def between(self, x):
        x = x - x.logsumexp(1, keepdim=True)
        loud = x[:, :, x.detach().mean((0, 1)) > x.detach().mean()]
        return x - loud.mean(-1)[:, :, None, None]


def test_a_statistic_over_other_sets_of_channels_freezes():
    found = find_groups(build(Regrouped), torch.randn(INPUT))
    assert {f.name: f.reason for f in found.frozen}["a"].startswith("cut, the model takes aten::mean over")
    assert [g.name for g in find_groups(build(Grouped), torch.randn(INPUT))] == ["a", "b"]


class Divides(nn.Module):
    """Splits one layer's output into pieces of another layer's width: one width must divide the other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 18), nn.Linear(18, 30), nn.Linear(30, 2)

    def forward(self, x):
        x = self.a(x)
        return self.head(torch.ops.aten.view(self.b(x), [-1, x.shape[-1]]).view(len(x), -1))


def test_a_choice_of_widths_that_suits_the_code_by_chance_is_not_enough():
    found = find_groups(Divides(), torch.randn(3, 3))  # first tried with 10 of 18, which divides 3 * 30
    assert "a" not in [g.name for g in found]


class UnequalChunks(nn.Module):
    """Chunks of 30, 30 and 28 channels; a layer reads the sum of the first two, as in EdgeNeXt.

    `chunk` cuts 2 a + b channels into parts of a, a and b channels only if b is a, a - 1 or a - 2.
    """

    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 88, 1), nn.Conv2d(88, 2, 1)
        self.layers = nn.ModuleList(nn.Conv2d(30, 30, 3, padding=1, groups=30) for _ in range(2))

    def forward(self, x):
        first, second, third = self.a(x).chunk(3, 1)
        first = self.layers[0](first)
        return self.head(torch.cat([first, self.layers[1](first + second), third], 1))


def test_parts_whose_widths_must_be_nearly_equal_stay():
    found = find_groups(UnequalChunks().eval(), torch.randn(INPUT))  # 18 and 17, or 22 and 21 channels would fit
    assert not len(found), [group.name for group in found]


class Chance(Between):
    def between(self, x):
        return F.dropout(x, 0.5, training=True)


class NotFinite(Between):
    def between(self, x):
        return x / x.detach().std((2, 3), keepdim=True)  # of an emptied channel: 0 / 0


class Unchanged(Between):
    def between(self, x):
        return x - x.logsumexp(1, keepdim=True)  # a statistic over channels differs by nature


class Expanded(Between):
    """An expanded buffer of one value, which cannot be written to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ones", torch.ones(1, 1, 1).expand(18, 1, 1))

    def between(self, x):
        return x * self.ones


@pytest.mark.parametrize("kind", [Chance, NotFinite, Unchanged, Elastic, Expanded])
def test_values_that_tell_nothing_freeze_nothing(kind):
    assert [g.name for g in find_groups(build(kind), torch.randn(INPUT))] == ["a", "b"]


def test_stirring_is_the_same_each_time_and_leaves_what_varies():
    models = [Between(), Between()]
    models[1].load_state_dict(models[0].state_dict())
    before = models[0].a.weight.clone()
    for model in models:
        randomise_constants(model)
    assert torch.equal(models[0].a.weight, before)
    assert models[0].norm.weight.std() > 0 and models[0].norm.running_var.min() > 0
    assert all(torch.equal(x, y) for x, y in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_a_model_that_cannot_be_copied_is_refused():
    model = build(Between)
    model.lock = threading.Lock()
    with pytest.raises(InputError, match="cannot be copied"):
        find_groups(model, torch.randn(INPUT))


class OneOfMany(nn.Module):
    """Eight layers, the sixth of which must keep its width; the error says so, or does not."""

    says = True

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(n, n + 1, 1) for n in range(11, 19))
        self.i, self.o = nn.Conv2d(3, 11, 1), nn.Conv2d(19, 2, 1)

    def forward(self, x):
        x = self.i(x)
        for number, layer in enumerate(self.layers):
            x = layer(x).relu()
            if number == 5 and x.shape[1] != 17:
                raise ValueError(f"{x.shape[1]} channels, not 17" if self.says else "too few")
        return self.o(x)


@pytest.mark.parametrize(("says", "runs"), [(True, 3), (False, 9)])
def test_the_group_that_an_error_names_is_left_out_first(says, runs, monkeypatch):
    model, seen, failure = OneOfMany().eval(), [], CutCopy.failure
    model.says = says
    monkeypatch.setattr(CutCopy, "failure", lambda *given: seen.append(given) or failure(*given))
    found = find_groups(model, torch.rand(1, 3, 4, 4))
    assert len(found) == 8 and "layers.5" not in {group.name for group in found}
    assert [f.name for f in found.frozen if "the model fails" in f.reason] == ["layers.5"] and len(seen) == runs
