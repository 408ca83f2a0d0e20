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
from sirfp.tracing.emissions import EmittedValues


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
@pytest.mark.parametrize(
    "activation", [F.relu6, F.hardtanh, F.hardsigmoid, F.leaky_relu, F.elu, F.selu, F.celu, F.rrelu]
)
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


class Constants(nn.Module):
    """Layers behind all that knows what channels emit: norms of each kind, an activation, a gate, tokens."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2))
        self.gate, self.mixed = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.grouped, self.tokens, self.norm = nn.GroupNorm(1, 16), nn.Linear(16, 12), nn.LayerNorm(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.stem(x)
        x = self.grouped(self.mixed(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()) + x)
        return self.head(self.norm(self.tokens(x.flatten(2).transpose(1, 2))))


def test_a_model_without_values_has_the_same_groups_and_nothing_is_known_of_its_channels():
    real = find_groups(Constants(), torch.randn(INPUT), trial=False)
    found = find_groups(Constants().to("meta"), torch.randn(INPUT, device="meta"), trial=False)
    assert [(g.name, g.size) for g in found] == [(g.name, g.size) for g in real] and len(found) == 2
    assert [e.weight for e in found.emissions] == [e.weight for e in real.emissions]
    assert all(e.emitted.is_meta for e in found.emissions)
    known = {e.weight for e in real.emissions if not e.emitted.isnan().any()}
    assert known == {"gate.weight", "mixed.weight", "tokens.weight"}


def test_values_of_tensors_without_values_are_not_kept():
    values, tensor = EmittedValues(), torch.empty(2, 8, 4, 4, device="meta")
    values.set_emitted(tensor, 1, torch.ones(8))
    values.emit_later(tensor, lambda: (1, torch.ones(8)))
    assert values.emitted(tensor) is None and values.emitted_maps(tensor) is None
    real = torch.empty(tensor.shape)
    values.set_emitted(real, 1, torch.ones(8, device="meta"))
    assert values.emitted(real) is None
