"""Biases that a cut gives join the optimizer's group of parameters of one dimension, where there is one."""

import pytest
import torch
from torch import nn

import sirfp


def build() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4, bias=False),
    )  # fmt: skip
    nn.init.uniform_(model[1].bias, 0.5, 1)
    return model


def matrices(model):
    return [p for p in model.parameters() if p.dim() > 1]


def vectors(model):
    return [p for p in model.parameters() if p.dim() <= 1]


def by_kind(model):
    return [{"params": matrices(model), "weight_decay": 0.05}, {"params": vectors(model), "weight_decay": 0.0}]


def by_layer(model):  # layer decay: each layer has two groups of one rate
    groups = [{"params": [p], "lr": 10.0**-i, "weight_decay": 0.05} for i, p in enumerate(matrices(model))]
    return [*groups, {"params": [p := vectors(model)[0]], "lr": 1.0, "weight_decay": 0.0},
            {"params": [q for q in vectors(model) if q is not p], "lr": 0.1, "weight_decay": 0.0}]  # fmt: skip


def faster_biases(model):
    return [{"params": matrices(model), "lr": 0.1}, {"params": vectors(model), "lr": 0.2}]


def mixed(model):
    return list(model.parameters())


def matrices_alone(model):
    return matrices(model)


@pytest.mark.parametrize(
    "groups, expected",
    [(by_kind, 1), (by_layer, 4), (faster_biases, 1), (mixed, 0), (matrices_alone, 0)],
)
def test_the_group_of_a_new_bias(groups, expected):
    model = build()
    optimizer = torch.optim.SGD(groups(model), lr=0.1)
    plan = sirfp.prune(model, torch.randn(1, 3, 16, 16), "magnitude", keep_flops=0.5, optimizer=optimizer)
    assert "3" in plan.new_biases
    where = [i for i, g in enumerate(optimizer.param_groups) for p in g["params"] if p is model[3].bias]
    assert where == [expected]
