"""Groups can be found on a copy of the model on another device."""

from __future__ import annotations

import copy
from collections import UserDict

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


class Tied(Placed):
    """Has tensors in several places."""

    def __init__(self):
        super().__init__()
        table = torch.randn(1, 24, 1, 1)
        self.register_buffer("table", table)
        self.part = nn.Module()
        self.part.register_buffer("table", table)
        self.more = [table, {"a": (torch.ones(24), 1)}]
        self.itself = [self.more]
        self.more.append(self.itself)
        self.encoder, self.decoder = nn.Linear(24, 24), nn.Linear(24, 24)
        self.decoder.weight = self.encoder.weight
        self.place, self.kind = torch.device("cpu"), nn.Conv2d
        self.hidden = [nn.Linear(2, 2)]


def test_a_tensor_in_several_places_stays_one():
    model = Tied()
    copied, inputs = on_device(model, UserDict(x=X, more=[X]), "meta")
    assert copied.table is copied.part.table is copied.more[0] and copied.encoder.weight is copied.decoder.weight
    assert inputs["x"] is inputs["more"][0] and inputs["x"].is_meta and not X.is_meta
    assert copied.table.is_meta and copied.more[1]["a"][0].is_meta and copied.more[1]["a"][1] == 1
    assert copied.place == torch.device("meta") and copied.kind is nn.Conv2d and copied.hidden[0].weight.is_meta
    assert model.place == torch.device("cpu") and not model.more[0].is_meta and not model.hidden[0].weight.is_meta


def test_a_device_on_which_nothing_is_computed_is_refused(model):
    with pytest.raises(InputError, match="trial_device 'meta': nothing is computed on this device"):
        sirfp.Pruner(model, X, criterion="magnitude", keep_flops=0.5, trial_device="meta")
    with pytest.raises(InputError, match="trial_device '': there is no such device here"):
        sirfp.Pruner(model, X, criterion="magnitude", keep_flops=0.5, trial_device="")


@pytest.mark.parametrize("call", [sirfp.prune, sirfp.Pruner])
def test_a_device_that_is_not_there_is_said_at_once(model, call):
    with pytest.raises(InputError, match="trial_device 'gpu': there is no such device here"):
        call(model, X, criterion="magnitude", keep_flops=0.5, trial_device="gpu")
    assert not Placed.ran
