"""Sizes that a model's code writes follow a cut: attributes are set, sizes in calls are replaced."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from cut_proofs import half_of, prove
from small_networks import random_keep
from torch import nn

import sirfp
from sirfp.channels import find_again, find_groups
from sirfp.channels.corrected_copy import CorrectedCopy
from sirfp.errors import InputError
from sirfp.network.sizes import is_resized
from sirfp.prune import plan_for
from sirfp.structure.plan import PruningPlan
from sirfp.surgery import apply
from sirfp.verify import compare, mask

X = torch.rand(1, 3, 8, 8)


class Parts(nn.Module):
    """Splits channels into a gate of 16 and values of 32."""

    def __init__(self):
        super().__init__()
        self.sizes, self.gate = [16, 32], 16
        self.i, self.p, self.o = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 48, 1), nn.Conv2d(32, 5, 1)
        self.g = nn.Conv2d(16, 32, 1)

    def parts(self, x):
        return x.split(self.sizes, 1)

    def forward(self, x):
        gate, value = self.parts(self.p(self.i(x)))
        return self.o(value * self.g(gate).sigmoid())


class BySizesInCode(Parts):
    def parts(self, x):
        return torch.split(x, (16, 32), dim=1)


class ByOneNumber(Parts):
    def parts(self, x):
        return x.split([self.gate, x.shape[1] - self.gate], 1)


class BySlices(Parts):
    def parts(self, x):
        return x[:, :16], x[:, 16:]


class ByNarrow(Parts):
    def parts(self, x):
        return x.narrow(1, 0, 16), x.narrow(1, 16, 32)


class ByTensorSplit(Parts):
    def parts(self, x):
        return x.tensor_split([16], 1)


class InATuple(Parts):
    def __init__(self):
        super().__init__()
        self.sizes = (16, 32)


@pytest.mark.parametrize("kind", [Parts, BySizesInCode, ByOneNumber, BySlices, ByNarrow, ByTensorSplit, InATuple])
def test_unequal_parts_follow(kind):
    torch.manual_seed(0)
    found = prove(kind(), X)
    assert [(g.name, g.size) for g in found] == [("i", 24), ("p", 16), ("p#2", 32), ("g", 32)][: len(found)]
    assert [f.name for f in found.frozen] == ["o"]


def test_attributes_are_set_where_they_hold_the_sizes():
    model = Parts().eval()
    found = find_groups(model, X)
    plan = plan_for(found, half_of(found, 0, list(found)))
    apply(model, plan)
    assert model.sizes == [8, 16] and not is_resized(model)


class Reshaped(nn.Module):
    """Writes its width in a reshape, an expanded tensor, a norm and a number of groups."""

    def __init__(self):
        super().__init__()
        self.a, self.width = nn.Conv2d(3, 12, 1), 12
        self.kernel, self.shift = nn.Parameter(torch.randn(1, 1, 3, 3)), nn.Parameter(torch.randn(1, 1, 1, 1))
        self.o = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = self.a(x).flatten(2).reshape(-1, 12, 8, 8)
        x = nn.functional.conv2d(x, self.kernel.expand(self.width, 1, 3, 3), padding=1, groups=self.width)
        return self.o((x + self.shift.expand(1, 12, 8, 8)).relu())


class Normed(nn.Module):
    """Layer norms without scale, with their width in the code, in an attribute, and from the input."""

    def __init__(self):
        super().__init__()
        self.i, self.m, self.o = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 5)
        self.norm = nn.LayerNorm(24, elementwise_affine=False)

    def forward(self, x):
        x = self.norm(self.i(x))
        x = self.m(nn.functional.layer_norm(x, (24,)))
        return self.o(nn.functional.layer_norm(x, [x.shape[-1]]))


def test_sizes_of_other_calls_follow():
    torch.manual_seed(0)
    assert [(g.name, g.size) for g in prove(Reshaped(), X)] == [("a", 12)]
    assert [(g.name, g.size) for g in prove(Normed(), torch.rand(2, 6, 8))] == [("i", 24), ("m", 16)]


class Recurrent(nn.Module):
    """Makes its first hidden states with widths in an attribute and in the code."""

    def __init__(self):
        super().__init__()
        self.i, self.width = nn.Linear(8, 24), 16
        self.first, self.then = nn.GRU(24, 16, batch_first=True), nn.LSTMCell(16, 12)
        self.o = nn.Linear(12, 5)

    def forward(self, x):
        spare = torch.zeros(3)
        x, _ = self.first(self.i(x), torch.zeros(1, len(x), self.width, dtype=x.dtype))
        state = x.new_zeros(len(x), 12), torch.ones((len(x), 12), dtype=x.dtype)
        for step in x.unbind(1):
            state = self.then(step, state)
        return self.o(state[0]) + spare.sum()


def test_hidden_states_that_the_code_makes_follow():
    torch.manual_seed(0)
    found = prove(Recurrent(), torch.rand(2, 3, 8))
    assert {g.size for g in found} == {24, 16, 12} and [f.name for f in found.frozen] == ["o"]
    known = {"attribute width", "site 0 new_zeros 1 of 12", "site 2 zeros 1 of 12"}
    keys = {key.partition(" at ")[0] for key in found.widths[""]}
    assert keys == known, "the call sites of each function are counted apart"


class Quotient(nn.Module):
    """Attention whose width of heads in the code is a quotient that is right for many choices of channels and heads."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.qkv, self.o = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.rand(heads, 1, 1))

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.o(x.transpose(1, 2).reshape(b, n, -1))


def test_quotients_of_widths_are_not_right_by_chance():
    torch.manual_seed(0)
    layers = [nn.Linear(8, 24), Quotient(24, 6), nn.Linear(24, 96), Quotient(96, 24), nn.Linear(96, 5)]
    found = prove(nn.Sequential(*layers), torch.rand(2, 6, 8))
    for seed in range(4):
        keep = half_of(found, seed, list(found))
        keep[found.spans["3.qkv"]] = np.arange(24) < 21 - 4 * seed
        pruned = nn.Sequential(*copy.deepcopy(layers))
        apply(pruned, plan_for(found, keep))
        assert pruned(torch.rand(2, 6, 8)).shape == (2, 6, 5)


class ChecksItsInput(nn.Module):
    """Fails if its input has another width than it was built for."""

    def __init__(self, width=24):
        super().__init__()
        self.width, self.parts, self.a = width, 4, nn.Linear(width, width)

    def forward(self, x):
        assert x.shape[-1] == self.width
        return self.a(x).view(*x.shape[:-1], self.parts, -1).flatten(-2)


class Translator(nn.Module):
    """PyTorch's transformer, which checks the widths of its inputs by an attribute."""

    def __init__(self):
        super().__init__()
        self.i = nn.Linear(6, 32)
        self.blocks = nn.Transformer(32, 4, 1, 1, 48, batch_first=True)
        self.o = nn.Linear(32, 3)

    def forward(self, x):
        x = self.i(x)
        return self.o(self.blocks(x, x[:, 1:]))


def test_the_embedding_of_a_transformer_is_cut():
    torch.manual_seed(0)
    model = Translator().eval()
    assert [f.name for f in find_groups(model, torch.rand(2, 5, 6)).frozen] == ["o"]
    found = prove(model, torch.rand(2, 5, 6))
    assert found["i"].size == 32


class ChecksWhatItMade(ChecksItsInput):
    """Fails if heads have another width than it was built for."""

    def forward(self, x):
        x = self.a(x).unflatten(-1, (self.parts, self.width // self.parts))
        if x.shape[-1] != self.width // self.parts:
            raise ValueError("heads have another width")
        return x.reshape(*x.shape[:-2], self.width)


@pytest.mark.parametrize("kind", [ChecksItsInput, ChecksWhatItMade])
def test_attributes_that_check_a_width_follow(kind):
    torch.manual_seed(0)
    found = prove(nn.Sequential(nn.Linear(8, 24), kind(), kind(), nn.Linear(24, 5)), torch.rand(2, 6, 8))
    assert [f.name for f in found.frozen] == ["3"] and len(found) == 3
    assert all("attribute width" in found.widths[name] for name in ("1", "2"))


class OncePerMode(nn.Module):
    """Reshapes twice in evaluation mode and once in training mode, with its width in the code."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 5, 1)

    def forward(self, x):
        x = self.a(x)
        if not self.training:
            x = x.roll(1, -1).reshape(-1, 4, 6, *x.shape[2:]).roll(1, -1).flatten(1, 2)
        return self.o(x.reshape(-1, 24, 64).relu().reshape(-1, 24, 8, 8))


class OnlyInTraining(nn.Module):
    """Returns a second output in training mode, of a branch with its width in the code."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.more, self.o = (nn.Conv2d(*n, 1) for n in ((3, 24), (24, 16), (16, 5), (24, 5)))

    def forward(self, x):
        x = self.a(x)
        if not self.training:
            return self.o(x)
        return self.o(x), self.more(self.b(x).relu().reshape(-1, 16, 8, 8))


@pytest.mark.parametrize(("kind", "names"), [(OncePerMode, ["a"]), (OnlyInTraining, ["a", "b"])])
def test_calls_in_training_mode_get_their_own_sizes(kind, names):
    torch.manual_seed(0)
    model = kind()
    found = prove(model, X)
    assert [g.name for g in found] == names
    half = half_of(found, 0, list(found))
    plan = PruningPlan.from_json(plan_for(found, half).to_json())
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    again = pickle.loads(pickle.dumps(copy.deepcopy(pruned)))
    for training in (True, False, True):
        outputs = [m.train(training)(X) for m in (masked, pruned, again)]
        wanted, *others = (out if isinstance(out, tuple) else (out,) for out in outputs)
        for other in others:
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, other, strict=True))


def resized() -> tuple[nn.Module, PruningPlan]:
    torch.manual_seed(0)
    model = BySizesInCode().eval()
    found = find_groups(model, X)
    plan = plan_for(found, half_of(found, 0, list(found)))
    apply(model, plan)
    return model, plan


def test_a_resized_module_is_of_its_class_and_can_be_copied_and_pickled():
    model, _ = resized()
    assert is_resized(model) and isinstance(model, BySizesInCode) and type(model).__name__ == "BySizesInCode"
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert compare(model, again, X).relative == 0


def test_a_resized_network_can_be_compiled_for_export():
    model, _ = resized()
    exported = torch.export.export(model, (X,)).module()
    assert torch.allclose(exported(X), model(X), atol=1e-6)


def test_a_plan_that_sets_what_is_not_there_is_refused_and_changes_nothing():
    model, other = Parts().eval(), Parts()
    found = find_groups(model, X)
    plan = plan_for(found, half_of(found, 0, list(found)))
    other.sizes = [16, 4]
    with pytest.raises(InputError, match=r"sets .sizes\[1\] to 16, which here is 4"):
        apply(other, plan)
    assert other.p.weight.shape[0] == 48
    del other.sizes
    with pytest.raises(InputError, match="for another model"):
        apply(other, plan)


def test_groups_found_again_keep_their_sizes():
    model = BySizesInCode().eval()
    found = find_groups(model, X)
    again = find_again(model, X, (), found)
    assert again.widths.keys() == found.widths.keys() and [g.name for g in again] == [g.name for g in found]


class Strided(Parts):
    """Takes every third channel."""

    def parts(self, x):
        return x[:, ::3], torch.cat([x[:, 1::3], x[:, 2::3]], 1)


class Hidden(Parts):
    """Splits by an operator that takes no part in PyTorch's protocol of functions."""

    def parts(self, x):
        return torch.ops.aten.split_with_sizes(x, [16, 32], 1)


@pytest.mark.parametrize("kind", [Strided, Hidden])
def test_parts_whose_sizes_cannot_be_given_stay(kind):
    found = find_groups(kind().eval(), X)
    assert "i" in [g.name for g in found] and "p" not in [g.name for g in found]
    assert next(f.reason for f in found.frozen if f.name == "p")


class KernelOfEachImage(nn.Module):
    """A kernel for each image, mixed from several; the code gives a width times the number of images."""

    def __init__(self):
        super().__init__()
        self.a, self.mix = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 3)
        self.kernels, self.o = nn.Parameter(torch.randn(3, 24, 16, 3, 3) / 12), nn.Conv2d(24, 5, 1)

    def forward(self, x):
        x = self.a(x).relu()
        n, c, h, w = x.shape
        kernels = (self.mix(x.mean((2, 3))).sigmoid() @ self.kernels.flatten(1)).view(n * 24, c, 3, 3)
        return self.o(nn.functional.conv2d(x.reshape(1, -1, h, w), kernels, padding=1, groups=n).view(n, 24, h, w))


def test_a_size_times_the_number_of_images_is_that_of_any_number(tmp_path):
    torch.manual_seed(0)
    dense = KernelOfEachImage().eval()
    small, x = copy.deepcopy(dense), torch.randn(2, 3, 8, 8)
    plan = sirfp.prune(small, x, "random", keep_params=0.7, bias_correction=False)
    again = sirfp.prune(small, x[:1], "random", keep_params=0.6, bias_correction=False, seed=1)
    assert small.o.in_channels < 24
    both = plan.then(again)
    sirfp.save(tmp_path / "small.safetensors", small, both)
    loaded = KernelOfEachImage().eval()
    sirfp.load(tmp_path / "small.safetensors", loaded)
    mask(dense, both)
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 8, 8)
        assert compare(dense, small, x, both).relative < 1e-5
        assert compare(small, loaded, x).relative == 0


class SlicesByAttribute(nn.Module):
    """Gives all bounds of slices as multiples of one attribute, also the last, which is the end."""

    def __init__(self, reduce):
        super().__init__()
        self.width, self.reduce = 6, reduce
        self.a, self.c = nn.Conv2d(3, 24, 1), nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(3))
        self.o = nn.Conv2d(12 if reduce else 24, 5, 1)

    def forward(self, x):
        x = self.a(x)
        parts = [x[:, i * self.width : (i + 1) * self.width] for i in range(4)]
        made = [conv(part) for conv, part in zip(self.c, parts[:3], strict=True)]
        if self.reduce:  # the number of channels of the last part is seen nowhere
            return self.o(torch.cat([made[0] * made[1], made[2]], 1)) + parts[3].sum(1, keepdim=True)
        return self.o(torch.cat([*made, parts[3]], 1))


@pytest.mark.parametrize("reduce", [False, True], ids=["joined", "summed"])
def test_a_bound_at_the_end_that_follows_from_an_attribute_is_replaced(reduce):
    torch.manual_seed(0)
    dense, x = SlicesByAttribute(reduce).eval(), torch.randn(2, 3, 4, 4)
    found = find_groups(dense, x)
    assert len(found.groups) >= 4
    for seed in range(20):
        keep = random_keep(found, seed)
        small, masked = copy.deepcopy(dense), copy.deepcopy(dense)
        plan = plan_for(found, keep)
        apply(small, plan)
        mask(masked, plan)
        assert compare(masked, small, x, plan).relative < 1e-5, seed


class AnchorsOfABox(nn.Module):
    """Splits its 12 outputs, which stay, into 3 anchors of 4 numbers, as heads of detectors do."""

    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 12, 1)

    def forward(self, x):
        x = self.i(x).relu()
        return self.o(x).view(len(x), *self.anchors(x), *x.shape[2:])

    def anchors(self, x):
        return 3, 4


class AsManyAsItReads(AnchorsOfABox):
    def anchors(self, x):
        return x.shape[1] // 8, 4


@pytest.mark.parametrize(("kind", "fitted"), [(AnchorsOfABox, False), (AsManyAsItReads, True)])
def test_networks_that_give_sizes_of_frozen_channels_are_cut_as_they_are_first(kind, fitted, monkeypatch):
    """Only where the code takes such a size from a width that is cut does it fail, and is run with the right sizes."""
    seen, failure = [], CorrectedCopy.failure
    monkeypatch.setattr(CorrectedCopy, "failure", lambda *given: seen.append(given) or failure(*given))
    found = find_groups(kind().eval(), X)
    assert [group.size for group in found] == [24] and bool(seen) == fitted
    prove(kind(), X)
