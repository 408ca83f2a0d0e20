"""Cutting: attributes, optimizer state, shared parameters, bias compensation, refusing another model."""

from __future__ import annotations

import copy
import weakref
from unittest import mock

import numpy as np
import pytest
import timm.optim
import torch
from small_networks import INPUT, Chain, Depthwise, Residual, Shared, build, random_keep
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.errors import InputError
from sirfp.prune import cut, plan_for
from sirfp.surgery import apply
from sirfp.surgery.compensation import compensate


def _choice(model, seed=0):
    found = find_groups(model, torch.randn(INPUT))
    return found, random_keep(found, seed)


def test_attributes_follow():
    model = build(Depthwise)
    found, keep = _choice(model)
    apply(model, plan_for(found, keep))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            out, read = module.weight.shape[:2]
            assert (module.out_channels, module.in_channels) == (out, read * module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_var)
    assert model.dw[0].groups == model.dw[0].in_channels


MAKE = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "AdamW": torch.optim.AdamW,
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "Lookahead": lambda p: timm.optim.Lookahead(torch.optim.AdamW(p), k=2),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_optimizer_state_is_cut_with_its_parameters(make):
    model = build(Residual).train()
    optimizer = make(model.parameters())
    for _ in range(2):
        model(torch.randn(INPUT)).square().mean().backward()
        optimizer.step()
    holder = getattr(optimizer, "_base_optimizer", optimizer)
    before = {name: copy.deepcopy(holder.state[p]) for name, p in model.named_parameters()}
    found, keep = _choice(model)
    plan = plan_for(found, keep)
    apply(model, plan, optimizer)
    kept = {}
    for c in plan.cuts:
        for name, dim in c.tensors:
            kept.setdefault(name, []).append((dim, list(c.keep)))
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert set(holder.state) == set(model.parameters())
    for name, parameter in model.named_parameters():
        for key, value in holder.state[parameter].items():
            expected = before[name][key]
            if isinstance(value, torch.Tensor) and value.dim():
                for dim, indices in kept.get(name, []):
                    expected = expected.index_select(dim, torch.tensor(indices))
                assert torch.equal(value, expected), (name, key)
    optimizer.zero_grad()
    model(torch.randn(INPUT)).square().mean().backward()
    optimizer.step()


def test_traces_of_the_hessian_are_cut_with_their_parameters():
    """timm's Adahessian keeps them as attributes of the parameters, also of a bias that a cut adds."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 2, 1))
    optimizer, x = timm.optim.Adahessian(model.parameters()), torch.randn(2, 3, 12, 12)

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward(create_graph=True)
        optimizer.step()

    step()
    before = {name: parameter.hess.clone() for name, parameter in model.named_parameters()}
    plan = sirfp.prune(model, x, "magnitude", keep_flops=0.5, calibration=[x, x], optimizer=optimizer)
    assert plan.new_biases == ("2",) and model[2].bias.hess == 0.0
    for c in plan.cuts:
        for name, dim in c.tensors:
            if name in before:
                before[name] = before[name].index_select(dim, torch.tensor(c.keep))
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name].hess, hess) for name, hess in before.items())
    step()
    assert all(parameter.hess.shape == parameter.shape for parameter in model.parameters())


def test_dense_tensors_go_while_the_model_is_cut():
    model = build(Residual)
    found, keep = _choice(model)
    plan, dense = plan_for(found, keep), [weakref.ref(p) for p in model.parameters()]
    made, alive = torch.nn.Parameter.__new__, []

    def counting(*args, **kwargs):
        alive.append(sum(r() is not None for r in dense))
        return made(*args, **kwargs)

    with mock.patch.object(torch.nn.Parameter, "__new__", counting):
        apply(model, plan)
    assert alive[0] == len(dense) and alive[-1] <= len(dense) - len(alive) + 2


def test_what_hangs_on_a_parameter_stays():
    model = build(Residual)
    found, keep = _choice(model)
    model.c[0].weight.group_name = "no decay"
    apply(model, plan_for(found, keep))
    assert model.c[0].weight.group_name == "no decay"


def test_shared_modules_stay_shared():
    model = build(Shared)
    found, keep = _choice(model)
    apply(model, plan_for(found, keep))
    assert model.alias[0][0].weight is model.tower[0][0].weight


def test_a_plan_for_another_model_is_refused_and_changes_nothing():
    model, other = build(Residual), build(Depthwise)
    found, keep = _choice(model)
    before = {name: tuple(t.shape) for name, t in other.state_dict().items()}
    with pytest.raises(InputError, match="another model"):
        apply(other, plan_for(found, keep))
    assert {name: tuple(t.shape) for name, t in other.state_dict().items()} == before


def test_memory_format_is_kept():
    model = build(Residual).to(memory_format=torch.channels_last)
    found, keep = _choice(model)
    apply(model, plan_for(found, keep))
    assert model.c[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("normed", "bias"), [(True, True), (False, True), (False, False)])
def test_compensation_is_exact_for_channels_that_are_constant(normed, bias):
    torch.manual_seed(0)
    model = Chain(normed, bias).eval()
    nn.init.normal_(model.norm.bias)
    constant = [1, 4, 6]
    with torch.no_grad():
        model.norm.weight[constant] = 0
    x = torch.randn(2, 3, 5, 5)
    expected = model(x).detach()
    found = find_groups(model, x)
    keep = np.array([c not in constant for c in found["a"].channels])
    plan = cut(model, found, keep, bias_correction=True)
    assert model.a.out_channels == 5
    assert plan.new_biases == (() if normed or bias else ("b",))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_compensation_without_removed_channels_changes_nothing():
    model = build(Residual)
    before = copy.deepcopy(model.state_dict())
    found = find_groups(model, torch.randn(INPUT))
    assert found.emissions
    compensate(model, found, np.ones(found.atoms, dtype=bool))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_shared_layer_is_compensated_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)

        def forward(self, x):
            x = self.norm(self.a(x)).relu()
            return self.b(x), self.b(torch.nn.functional.max_pool2d(x, 2))

    torch.manual_seed(0)
    model = Twice().eval()
    nn.init.normal_(model.norm.bias)
    with torch.no_grad():
        model.norm.weight[:3] = 0
    x = torch.randn(1, 3, 8, 8)
    expected = [t.detach() for t in model(x)]
    found = find_groups(model, x)
    cut(model, found, np.array([c >= 3 for c in found["a"].channels]))
    for got, wanted in zip(model(x), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


class Read(nn.Module):
    """Emptied channels that emit a constant, read by `b` and what a subclass does with it."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.b, self.after, self.other = nn.Conv2d(8, 5, 1), nn.BatchNorm2d(5), nn.BatchNorm2d(5)

    def forward(self, x):
        return self.read(self.norm(self.a(x)).relu())


class NormOfAnActivation(Read):
    def read(self, x):
        return self.after(self.b(x).relu_())


class NormAndAnother(Read):
    def read(self, x):
        x = self.b(x)
        return self.after(x) + x


class NormForEachCall(Read):
    def read(self, x):
        return self.after(self.b(x)), self.other(self.b(nn.functional.max_pool2d(x, 2)))


class NormForOneCall(Read):
    def read(self, x):
        return self.after(self.b(x)), self.b(nn.functional.max_pool2d(x, 2))


class NormOfTwo(Read):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(8, 5, 1)

    def read(self, x):
        return self.after(self.b(x)) + self.after(self.c(x))


class BesideTheUnknown(Read):
    """Concatenated with channels whose values are unknown."""

    def __init__(self):
        super().__init__()
        self.beside, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x):
        return self.b(torch.cat([self.beside(x), self.norm(self.a(x)).relu()], dim=1))


@pytest.mark.parametrize(
    "kind", [NormOfAnActivation, NormAndAnother, NormForEachCall, NormForOneCall, NormOfTwo, BesideTheUnknown]
)
def test_compensation_is_exact_whoever_reads_the_layer(kind):
    model = _with_constants(kind)
    x = torch.randn(1, 3, 8, 8)
    expected = model(x)
    found = find_groups(model, x)
    keep = np.ones(found.atoms, dtype=bool)
    keep[found.spans["a"]] = np.array(found["a"].channels) >= 3
    cut(model, found, keep)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


class ReadTwice(Read):
    """One layer reads the constants, then something else."""

    def __init__(self):
        super().__init__()
        self.b = nn.Conv2d(8, 8, 1)

    def read(self, x):
        return self.b(self.b(x).relu())


class ZeroInPart(Read):
    def read(self, x):
        x[:, :, :4].zero_()
        return self.b(x)


class Strange(nn.Module):
    """A layer whose bias is not an ordinary parameter."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 8, 1, 1)), 3

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight) * self.bias


class StrangeBias(Read):
    def __init__(self):
        super().__init__()
        self.b = Strange()

    def read(self, x):
        return self.b(x)


@pytest.mark.parametrize("kind", [ReadTwice, ZeroInPart, StrangeBias])
def test_without_one_constant_for_all_calls_nothing_is_compensated(kind):
    model = _with_constants(kind)
    before = copy.deepcopy(model.state_dict())
    found = find_groups(model, torch.randn(1, 3, 8, 8))
    assert compensate(model, found, np.arange(found.atoms) >= 3) == ()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def _with_constants(kind: type[nn.Module]) -> nn.Module:
    """A network whose first three channels after the norm are constant."""
    torch.manual_seed(0)
    model = kind().eval().requires_grad_(False)
    nn.init.uniform_(model.norm.bias, 0.3, 1.5)
    model.norm.weight[:3] = 0
    for norm in (model.after, model.other):
        nn.init.normal_(norm.running_mean)
    return model
