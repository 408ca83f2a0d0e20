"""Tracing of channels through single operations, and of the outputs of a model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_networks import INPUT, random_keep
from torch import nn

from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.prune import plan_for
from sirfp.surgery import apply


class Through(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), function

    def forward(self, x):
        return self.b(self.function(self.a(x)))


@pytest.mark.parametrize(
    ("function", "cut"),
    [
        (lambda x: F.normalize(x, dim=1), True),
        (lambda x: x * x.mean(1, keepdim=True).expand_as(x), True),
        (lambda x: x * x.mean(1, keepdim=True).expand(-1, 8, -1, -1), True),  # the 8 is replaced
        (lambda x: x * torch.max(x, dim=1, keepdim=True)[0].sigmoid(), True),
        (lambda x: x * x.min(1)[0].unsqueeze(1), True),
        (lambda x: x / x.max(), True),
        (lambda x: x * x.max(1, keepdim=True)[1], False),
        (lambda x: x * x.argmax(1, keepdim=True), False),
        (lambda x: torch.maximum(x, x.tanh()), True),
        (lambda x: F.softshrink(F.hardshrink(F.threshold(x, 0, 1))), True),
    ],
)
def test_a_statistic_over_channels_spread_over_them_keeps_none_whole(function, cut):
    found = find_groups(Through(function), torch.randn(INPUT))
    assert [g.name for g in found] == (["a"] if cut else [])
    pruned = Through(function)
    apply(pruned, plan_for(found, random_keep(found, 0)))
    assert pruned(torch.randn(INPUT)).shape == (2, 2, 16, 16)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activation", [F.relu6, F.hardtanh, F.hardsigmoid, F.leaky_relu, F.elu, F.selu, F.celu])
def test_activations_that_older_pytorch_does_not_tag_keep_none_whole(activation, inplace):
    assert len(find_groups(Through(lambda x: activation(x, inplace=inplace)), torch.randn(INPUT))) == 1


def test_the_place_of_a_greatest_value_that_is_returned_keeps_channels():
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            return self.b(x), x.max(1)

    assert len(find_groups(Places(), torch.randn(INPUT))) == 0


def test_an_operation_that_a_rule_cannot_follow_keeps_channels():
    def drawn(x):  # joined with what is not known, what is emitted is no probability
        return torch.bernoulli(torch.cat([nn.functional.batch_norm(x, mean, one, one, one), x], 1).sigmoid())[:, :8]

    mean, one = torch.zeros(8), torch.ones(8)
    model = Through(drawn)
    model.register_buffer("mean", mean), model.register_buffer("one", one)
    assert len(find_groups(model, torch.randn(INPUT))) == 0


class Output:
    """What a model returns, with slots in place of a dictionary."""

    __slots__ = ("features", "scores")


class Returning(nn.Module):
    """Returns features and scores in one way or another."""

    def __init__(self, form):
        super().__init__()
        self.a, self.head, self.form = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), form

    def forward(self, x):
        features = self.a(x)
        return self.form(features, self.head(features))


def _slotted(features, scores):
    output = Output()
    output.features, output.scores = features, scores
    return output


@pytest.mark.parametrize("form", [_slotted, lambda a, b: {"x": [a, (b,)]}, lambda a, b: SimpleNamespace(a=a, b=b)])
def test_whatever_holds_the_outputs_their_widths_stay(form):
    assert len(find_groups(Returning(form), torch.randn(INPUT))) == 0


def test_a_model_that_returns_no_tensor_is_refused():
    with pytest.raises(InputError, match="returns no tensor"):
        find_groups(Returning(lambda a, b: b.numpy()), torch.randn(INPUT))


class MapNorm(nn.LayerNorm):
    """A layer norm of maps, as timm's and SegFormer's: channels are last inside, and second in what it returns."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("width", [6, 8])  # also where a map is as wide as it has channels
@pytest.mark.parametrize("norm", [MapNorm, nn.BatchNorm2d])
def test_features_are_looked_at_by_their_channels(norm, width):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm(8), nn.Conv2d(8, 2, 1))
    (group,) = find_groups(model, torch.randn(1, 3, 5, width))
    (feature,) = group.features
    assert (feature.module, feature.dim, feature.channels) == ("1", 1, 8)


def test_features_of_tokens_have_their_channels_last():
    model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    (group,) = find_groups(model, torch.randn(1, 8, 3))
    assert [feature.dim for feature in group.features] == [-1]
