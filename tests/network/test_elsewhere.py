"""Groups can be found on a copy of the model on another device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.network.elsewhere import on_device


class Placed(nn.Module):
    """Has a constant as a plain attribute, and notes the modules that run."""

    ran: list[nn.Module] = []

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 5, 1)
        self.norm = nn.BatchNorm2d(16)
        self.shift = torch.linspace(0, 1, 16)[:, None, None]

    def forward(self, x):
        self.ran.append(self)
        return self.c(self.b(self.norm(self.a(x)).relu() + self.shift).relu())


@pytest.fixture
def model() -> Placed:
    torch.manual_seed(0)
    Placed.ran.clear()
    return Placed().eval()


X = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_groups_are_those_that_the_model_itself_shows(model):
    found, there = find_groups(model, X), find_groups(model, X, device="cpu")
    parts = [[(s.tensor, s.dim, s.index.tolist()) for g in groups for s in g.slices] for groups in (found, there)]
    assert parts[0] == parts[1] and len(found) == 2 and found.flops() == there.flops()
    for one, other in zip(found.emissions, there.emissions, strict=True):
        torch.testing.assert_close(other.emitted, one.emitted, rtol=0, atol=0, equal_nan=True)
        assert other.emitted.device == model.a.weight.device


def test_the_model_itself_does_not_run(model):
    session = sirfp.session.PruningSession(model, X, trial_device="cpu")
    session.find()
    assert Placed.ran and not any(one is model for one in Placed.ran)


def test_parameters_buffers_plain_tensors_and_inputs_move(model):
    items = [{"image": X[0], "height": 16}, (X, "a")]
    copied, inputs = on_device(model, items, torch.device("meta"))
    tensors = [*copied.parameters(), *copied.buffers(), copied.shift, inputs[0]["image"], inputs[1][0]]
    assert all(tensor.is_meta for tensor in tensors) and inputs[0]["height"] == 16 and inputs[1][1] == "a"
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers(), model.shift, X))


def test_a_plan_is_the_same(model):
    other = copy.deepcopy(model)
    plan = sirfp.prune(model, X, "magnitude", keep_flops=0.5)
    assert sirfp.prune(other, X, "magnitude", keep_flops=0.5, trial_device="cpu").kept == plan.kept
    assert torch.equal(model(X), other(X))
    pruner = sirfp.Pruner(copy.deepcopy(model), X, criterion="magnitude", keep_flops=0.4, trial_device="cpu")
    assert pruner.session.trial_device == "cpu"


@pytest.mark.parametrize("call", [sirfp.prune, sirfp.Pruner])
def test_a_device_that_is_not_there_is_said_at_once(model, call):
    with pytest.raises(InputError, match="trial_device 'gpu': there is no such device here"):
        call(model, X, criterion="magnitude", keep_flops=0.5, trial_device="gpu")
    assert not Placed.ran
