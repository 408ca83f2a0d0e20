"""Constants that are plain attributes of modules lose channels; what code keeps for its next call does not."""

from __future__ import annotations

import copy

import pytest
import torch
from cut_proofs import prove
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.network.plain_tensors import plain_tensors
from sirfp.verify import compare, mask

WIDTH = 16


class Tokens(nn.Module):
    """An embedding with positions, and a residual MLP; subclasses give the positions, (9, WIDTH)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.positions_for(x)
        return self.head((x + self.mlp(self.norm(x))).mean(1))


class FromConstructor(Tokens):
    def __init__(self):
        super().__init__()
        self.positions = torch.randn(9, WIDTH)

    def positions_for(self, x):
        return self.positions.to(x.device, dtype=x.dtype)


class InPart(Tokens):
    """The constant is an attribute of a part, is moved by `_apply`, and only its first rows are used."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.randn(1, 20, WIDTH)

        def _apply(self, fn, recurse=True):
            super()._apply(fn, recurse)
            self.table = fn(self.table)
            return self

        def forward(self, x):
            return self.table[:, : x.shape[1]]

    def __init__(self):
        super().__init__()
        self.part = self.Positions()

    def positions_for(self, x):
        return self.part(x)


class Gate(Tokens):
    """The constant scales the channels of a convolution-like map instead of being added."""

    def __init__(self):
        super().__init__()
        self.scale = torch.rand(WIDTH) + 0.5

    def positions_for(self, x):
        return x * self.scale


class Cached(Tokens):
    """The forward makes the table anew, in the width of its input, unless it has one that fits."""

    def __init__(self):
        super().__init__()
        self.positions = None

    def positions_for(self, x):
        if self.positions is None or self.positions.shape != x.shape[1:]:
            self.positions = torch.linspace(0, 1, x[0].numel()).reshape(x.shape[1:])
        return self.positions


class CachedByRoot(Tokens):
    """The same, set by the code of another module."""

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.zeros(0)

    def __init__(self):
        super().__init__()
        self.holder = self.Holder()

    def positions_for(self, x):
        if self.holder.table.shape != x.shape[1:]:
            self.holder.table = torch.linspace(0, 1, x[0].numel()).reshape(x.shape[1:])
        return self.holder.table


def inputs() -> torch.Tensor:
    return torch.randn(2, 9, 6)


@pytest.mark.parametrize("kind", [FromConstructor, InPart, Gate])
def test_a_constant_loses_channels_with_what_it_joins(kind):
    torch.manual_seed(0)
    found = prove(kind(), inputs(), exact=False)
    name = next(iter(plain_tensors(kind())))
    last = plain_tensors(kind())[name].dim() - 1
    [group] = [group for group in found if (name, last) in [(piece.tensor, piece.dim) for piece in group.slices]]
    assert group.size == WIDTH
    assert all(frozen.name == "head" for frozen in found.frozen)


@pytest.mark.parametrize("kind", [FromConstructor, InPart, Gate])
def test_a_cut_constant_computes_what_the_masked_network_does(kind, tmp_path):
    torch.manual_seed(0)
    dense, x = kind().eval(), inputs()
    untouched, names = copy.deepcopy(dense), list(dense.state_dict())
    pruned, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    plan = sirfp.prune(pruned, x, "random", keep_flops=0.4, bias_correction=False)
    mask(masked, plan)
    name = next(iter(plain_tensors(dense)))
    assert compare(masked, pruned, x, plan).relative < 1e-5 < compare(dense, pruned, x).relative
    assert pruned.get_buffer(name).shape[-1] == len(plan.kept["embed"]) < WIDTH
    assert list(pruned.state_dict()) == names  # the constant is not in the state dict, as before
    sirfp.save(tmp_path / "small.safetensors", pruned, plan)
    sirfp.load(tmp_path / "small.safetensors", untouched)  # a dense network of the same constants
    assert compare(pruned, untouched, x).relative == 0.0


def test_finding_groups_and_a_refused_budget_leave_the_constant_a_plain_attribute():
    model, x = FromConstructor().eval(), inputs()
    constant, values = model.positions, model.positions.clone()
    find_groups(model, x)
    with pytest.raises(sirfp.InputError):
        sirfp.prune(model, x, "random", keep_flops=1e-6)
    assert vars(model)["positions"] is constant and torch.equal(constant, values)


@pytest.mark.parametrize("kind", [Cached, CachedByRoot])
@pytest.mark.parametrize("called", [False, True], ids=["new", "called before"])
def test_what_a_forward_keeps_for_its_next_call_holds_its_width(kind, called):
    torch.manual_seed(0)
    model, x = kind().eval(), inputs()
    if called:
        model(x)
    found = find_groups(model, x)
    assert not plain_tensors(model)
    assert [group.name for group in found] == ["mlp.0"]  # a new network makes the table in the width it finds


def test_a_constant_that_ignore_names_keeps_its_channels():
    found = find_groups(FromConstructor().eval(), inputs(), ignore=["positions"])
    assert [group.name for group in found] == ["mlp.0"]


def test_widths_can_be_given_beside_a_constant():
    model = FromConstructor().eval()
    sirfp.prune(model, inputs(), "magnitude", keep={"embed": 6, "mlp.0": 0.5})
    assert model.positions.shape == (9, 6) and model.mlp[0].weight.shape == (12, 6)


def test_weights_that_hooks_compute_are_no_constants():
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        net(torch.randn(1, 3, 8, 8))
    assert not plain_tensors(net)
    assert "0" in [group.name for group in find_groups(net, torch.randn(1, 3, 8, 8))]


def test_a_weight_set_by_name_before_each_call_stays_prunable():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3)
            self.raw = nn.Parameter(self.layer.weight.detach().clone())
            del self.layer.weight
            setattr(self.layer, "weight", self.raw.detach().clone())  # noqa: B010
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            setattr(self.layer, "weight", self.raw / 2)  # noqa: B010
            return self.last(self.layer(x).relu())

    torch.manual_seed(0)
    found = find_groups(Scaled().eval(), torch.randn(1, 3, 8, 8))
    assert [group.size for group in found] == [8]
    assert all("layer.weight" not in frozen.name for frozen in found.frozen)


class Filter(nn.Module):
    """Applies a fixed kernel to every channel, as a blur, or a fixed matrix to all of them."""

    def __init__(self, kernel: torch.Tensor):
        super().__init__()
        self.kernel = kernel

    def forward(self, x):
        if self.kernel.dim() == 2:
            return nn.functional.linear(x, self.kernel.to(x))
        return nn.functional.conv2d(x, self.kernel.to(x), padding=1, groups=x.shape[1])


@pytest.mark.parametrize("place", ["inside", "first", "several outputs", "matrix"])
def test_filters_that_are_plain_attributes(place):
    torch.manual_seed(0)
    rows = {"inside": 16, "first": 3, "several outputs": 24}
    if place == "matrix":
        layers, x = [nn.Linear(4, 16), Filter(torch.rand(16, 16)), nn.ReLU(), nn.Linear(16, 3)], torch.rand(2, 4)
    else:
        applied = Filter(torch.rand(rows[place], 1, 3, 3))
        around = [nn.Conv2d(3, 16, 3), applied] if place == "inside" else [applied]
        layers = [*around, nn.ReLU(), nn.Conv2d(16 if place == "inside" else rows[place], 12, 1), nn.Conv2d(12, 2, 1)]
        x = torch.rand(1, 3, 9, 9)
    found = prove(nn.Sequential(*layers), x)
    sizes = {"inside": [16, 12], "first": [12], "several outputs": [8, 12], "matrix": [16, 16]}[place]
    assert sorted(group.size for group in found) == sorted(sizes)
    plan = sirfp.prune(nn.Sequential(*layers), x, keep_flops=0.7, calibration=[x, x.flip(0)])
    assert plan.cuts
