"""Walks over a model give what PyTorch's own methods give, in the same order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sirfp.network.module_copies import copied_modules
from sirfp.network.walk import walk, walk_buffers, walk_modules, walk_names, walk_parameters, walk_tensors


class Shared(nn.Module):
    """Uses a module and a tensor twice, and has an entry without a module."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.b = nn.ModuleDict({"again": self.a[0], "own": nn.Conv2d(3, 4, 1)})
        self.b["own"].weight = self.a[0].weight
        self.c = None
        self.register_module("none", None)
        self.register_buffer("table", torch.zeros(2), persistent=False)
        self.notes = {"parts": [self.a], "numbers": (1, 2.0), "table": self.table}


class OwnList(nn.Sequential):
    def named_modules(self, *args, **kwargs):
        yield "elsewhere", self


@pytest.mark.parametrize("model", [Shared(), nn.Sequential(OwnList(nn.ReLU())), torch.jit.script(nn.Linear(2, 2))])
def test_walks_are_like_pytorchs(model):
    assert walk(model) == list(model.named_modules())
    assert walk_modules(model) == list(model.modules())
    for ours, theirs in ((walk_parameters, model.named_parameters()), (walk_buffers, model.named_buffers())):
        assert _ids(ours(model)) == _ids(theirs)
    assert _ids(walk_tensors(model).items()) == _ids([*model.named_parameters(), *model.named_buffers()])
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    assert _ids(walk_names(model).items()) == _ids(every)


def _ids(tensors):
    return [(name, id(tensor)) for name, tensor in tensors]


def test_copies_share_what_the_model_shares():
    model = Shared()
    copied = copied_modules(model, {})
    assert [name for name, _ in walk(copied)] == [name for name, _ in walk(model)]
    assert {id(m) for m in walk_modules(copied)}.isdisjoint({id(m) for m in walk_modules(model)})
    assert copied.b["again"] is copied.a[0] and copied.b["own"].weight is copied.a[0].weight
    assert copied.notes["parts"][0] is copied.a and copied.notes["table"] is copied.table is not model.table


class OwnCopy(nn.ReLU):
    def __deepcopy__(self, memo):
        return "copied by its own code"


class OwnState(nn.ReLU):
    def __getstate__(self):
        return {**super().__getstate__(), "added": 1}


def test_classes_that_copy_themselves_do_so():
    model = nn.Sequential(OwnState(), nn.ReLU())
    model.other = [OwnCopy()]
    copied = copied_modules(model, {})
    assert copied[0].added == 1 and copied.other == ["copied by its own code"]
