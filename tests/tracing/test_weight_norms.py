"""Weights that are computed from their own norm: weight norm, spectral norm and a largest norm."""

from __future__ import annotations

import warnings

import pytest
import torch
from cut_proofs import half_of, prove
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask


def _old_weight_norm(layer: nn.Module, **options) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, _old_weight_norm], ids=["new", "old"])
@pytest.mark.parametrize("middle", ["plain", "depthwise", "transposed", "linear", "linear, inputs", "linear, all"])
def test_weight_norm_passes(norm, middle):
    torch.manual_seed(0)
    if middle.startswith("linear"):
        options = {"linear, inputs": {"dim": 1}, "linear, all": {"dim": None}}.get(middle, {})
        layers = [nn.Linear(8, 16), norm(nn.Linear(16, 12), **options), nn.Linear(12, 2)]
        x = torch.rand(1, 8)
    else:
        kind = {
            "depthwise": lambda: nn.Conv1d(16, 16, 3, groups=16),
            "transposed": lambda: nn.ConvTranspose1d(16, 12, 3),
        }
        layer = kind.get(middle, lambda: nn.Conv1d(16, 12, 3))()
        layers, x = [nn.Conv1d(1, 16, 3), norm(layer), nn.Conv1d(layer.out_channels, 2, 3)], torch.rand(1, 1, 32)
    if norm is _old_weight_norm:  # it computes its weight in each call; before the first, PyTorch cannot copy it
        with torch.no_grad():
            layers[1](layers[0](x))
    found = prove(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]), x)
    assert len(found) == (1 if middle == "depthwise" else 2)


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["new", "old"])
@pytest.mark.parametrize("kind", ["convolution", "linear", "line", "transposed line", "transposed", "volume"])
def test_spectral_norm_passes(norm, kind):
    torch.manual_seed(0)
    if kind == "linear":
        layers, x = [nn.Linear(8, 16), norm(nn.Linear(16, 12)), nn.Linear(12, 2)], torch.rand(1, 8)
    elif "line" in kind:
        make = nn.ConvTranspose1d if "transposed" in kind else nn.Conv1d
        layers, x = [nn.Conv1d(2, 16, 3), norm(make(16, 12, 3)), nn.Conv1d(12, 2, 1)], torch.rand(1, 2, 8)
    elif kind == "volume":
        layers, x = [nn.Conv3d(2, 16, 3), norm(nn.Conv3d(16, 12, 3)), nn.Conv3d(12, 2, 1)], torch.rand(1, 2, 8, 8, 8)
    elif kind == "transposed":
        layers = [nn.Conv2d(2, 16, 3), norm(nn.ConvTranspose2d(16, 12, 3)), nn.Conv2d(12, 2, 1)]
        x = torch.rand(1, 2, 8, 8)
    else:
        layers, x = [nn.Conv2d(2, 16, 3), norm(nn.Conv2d(16, 12, 3)), nn.Conv2d(12, 2, 1)], torch.rand(1, 2, 8, 8)
    with torch.no_grad():
        layers[1](layers[0](x))
    assert [g.size for g in prove(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]), x)] == [16, 12]


class AtMost(nn.Module):
    """As EEGNet does: scales the kernel of each output to a norm of at most a half."""

    def forward(self, weight):
        return weight.renorm(2, 0, 0.5)


@pytest.mark.parametrize("groups, sizes", [(1, [16, 12]), (16, [16])], ids=["plain", "depthwise"])
def test_a_largest_norm_passes(groups, sizes):
    torch.manual_seed(0)
    middle = nn.Conv2d(16, 16 if groups > 1 else 12, 3, groups=groups)
    parametrize.register_parametrization(middle, "weight", AtMost())
    last = nn.Conv2d(middle.out_channels, 2, 1)
    found = prove(nn.Sequential(nn.Conv2d(2, 16, 3), middle, nn.ReLU(), last), torch.rand(1, 2, 8, 8))
    assert [g.size for g in found] == sizes and {f.name for f in found.frozen} == {"3"}


def test_a_largest_norm_of_features_is_not_that_of_those_left():
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.o = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.o(self.i(x).renorm(2, 0, 0.5))

    (group,) = find_groups(Bounded(), torch.rand(3, 4))
    assert "renorm" in (group.inexact or "")


def test_a_table_of_embeddings_of_a_largest_norm_passes():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(9, 16, max_norm=0.5), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)).eval()
    index = torch.tensor([[1, 4, 4, 7]])
    found = find_groups(network, index)
    assert [g.size for g in found] == [16, 12]
    again = nn.Sequential(nn.Embedding(9, 16, max_norm=0.5), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)).eval()
    again.load_state_dict(network.state_dict())
    plan = plan_for(found, half_of(found, 0, list(found)))
    apply(network, plan)
    mask(again, plan)
    assert compare(again, network, index).relative < 1e-5
