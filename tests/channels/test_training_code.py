"""Code that runs only in training is followed and tried too, whether or not it has parameters."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

import sirfp
from sirfp.channels import find_groups
from sirfp.network.forward import training_branches
from sirfp.network.training_reads import TrainingReads

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Conv2d(12, 4, 1)

    def between(self, x):
        return x

    def forward(self, x):
        return self.h(F.relu(self.b(self.between(F.relu(self.a(x))))))


class MasksByWidth(Net):
    def between(self, x):
        return x * (torch.rand(1, 16, 1, 1) > 0.1) if self.training else x


class Shuffles(Net):
    """In training it shuffles channels in groups of four, a size in the code."""

    def between(self, x):
        return x.view(len(x), -1, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape) if self.training else x


class ScalesByWidth(Net):
    """Runs other code in training only once it is cut."""

    def between(self, x):
        return x / (x.shape[1] if self.training else 16)


class MeanByNumpy(Net):
    """In training it adds a mean over channels that the trace cannot see."""

    def between(self, x):
        return x + float(x.detach().numpy().mean()) if self.training else x


class DropChannels(nn.Module):
    """A dropout of one's own, whose noise has a width in the code."""

    def forward(self, x):
        return x * (torch.rand(16, device=x.device) > 0.1)[:, None, None] if self.training else x


class HasItsOwnDropout(Net):
    def __init__(self):
        super().__init__()
        self.drop = DropChannels()

    def between(self, x):
        return self.drop(x)


class CountsWidths(Net):
    """Raises in training unless the width divides by four."""

    def between(self, x):
        return x.unflatten(1, (4, -1)).flatten(1, 2).clone() if self.training else x


@pytest.mark.parametrize("kind", [MasksByWidth, Shuffles, ScalesByWidth, MeanByNumpy, HasItsOwnDropout])
def test_training_code_that_hangs_on_the_width_keeps_it(kind):
    torch.manual_seed(0)
    found = find_groups(kind().eval(), X)
    assert {g.name for g in found if g.size > 1} == {"b"}  # a shuffle ties all channels of `a`


@pytest.mark.parametrize("kind", [MasksByWidth, Shuffles, ScalesByWidth, MeanByNumpy, HasItsOwnDropout, CountsWidths])
def test_what_was_cut_trains(kind):
    torch.manual_seed(0)
    net = kind().eval()
    sirfp.prune(net, X, "random", keep_flops=0.8, bias_correction=False)
    net.train()(X).sum().backward()


class Dropouts(Net):
    """PyTorch's dropouts, whose noise follows the width."""

    def between(self, x):
        x = F.dropout2d(F.dropout(x, 0.2, self.training), 0.2, self.training)
        return F.feature_alpha_dropout(F.alpha_dropout(x, 0.1, self.training), 0.1, self.training)


class DropPath(Net):
    """Drops whole images."""

    def between(self, x):
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.9) if self.training else x


class NeedsTargets(Net):
    def between(self, x):
        if self.training:
            raise ValueError("in training, targets are needed")
        return x


class NoiseOfTheWidth(Net):
    """Its noise follows the width, but two widths draw other numbers: values cannot be compared."""

    def between(self, x):
        return x + 0.1 * torch.randn_like(x) if self.training else x


@pytest.mark.parametrize("kind", [Dropouts, DropPath, NeedsTargets, NoiseOfTheWidth])
def test_training_code_that_follows_the_width_freezes_nothing(kind):
    assert [g.name for g in find_groups(kind(), X)] == ["a", "b"]


def test_a_model_that_never_asks_for_its_mode_is_not_run_in_training():
    calls = []

    class Notes(Net):
        def between(self, x):
            calls.append(self.__dict__["training"])
            return x

    net = nn.Sequential(Notes(), nn.BatchNorm2d(4), nn.Dropout(0.5))
    find_groups(net, X)
    assert calls and not any(calls)


class DropsOrScales(Net):
    """Scales channels in training by a vector whose width is in the code, after a layer that only drops samples."""

    def __init__(self, drop):
        super().__init__()
        self.drop = drop

    def between(self, x):
        return self.drop(x * torch.linspace(0.5, 1.5, 16)[:, None, None] if self.training else x)


DROPS = [StochasticDepth(0.2, "row"), StochasticDepth(0.2, "batch"), timm.layers.DropPath(0.2)]


@pytest.mark.parametrize("drop", DROPS)
def test_stochastic_depth_is_known_and_any_other_code_is_run_in_training(drop):
    modes = []
    net = nn.Sequential(nn.Conv2d(3, 8, 3), drop, nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)).train()
    net[0].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    found = find_groups(net, X)
    assert [group.name for group in found] == ["0"] and modes and not any(modes)
    assert {g.name for g in find_groups(DropsOrScales(drop), X)} == {"b"}
    with training_branches(net):
        assert net.training and not drop.training


class DoublesAsWell(StochasticDepth):
    """Of a class of one's own: nothing is known of its code."""

    def forward(self, x):
        return super().forward(x) * torch.linspace(0.5, 1.5, 16)[:, None, None] if self.training else x


def test_a_subclass_of_stochastic_depth_is_run_in_training():
    assert {g.name for g in find_groups(DropsOrScales(DoublesAsWell(0.2, "row")), X)} == {"b"}
    net = nn.Sequential(nn.Conv2d(3, 16, 3), DoublesAsWell(0.2, "row"), nn.Conv2d(16, 4, 1))
    assert not find_groups(net, X).groups


def test_reads_of_the_mode_are_noted_and_the_attribute_stays_as_it_was():
    net = nn.Sequential(Shuffles(), nn.Dropout(0.5)).eval()
    with TrainingReads() as reads:
        net(X)
        net.train()
    assert reads.modules == {net[0], net[1]}
    assert "training" not in nn.Module.__dict__ and net[0].training and copy.deepcopy(net)[1].training


def test_a_pass_in_training_counts_no_call_twice():
    torch.manual_seed(0)
    net = Dropouts()
    assert len(find_groups(net, X).emissions) == len(find_groups(Net(), X).emissions) == 2
