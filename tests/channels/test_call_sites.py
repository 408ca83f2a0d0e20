"""Calls from one place in the code share a size, however often a loop around it runs."""

from __future__ import annotations

import copy
import dataclasses
import gc
import re
import weakref

import pytest
import torch
from cut_proofs import half_of, prove
from marks import slow_but
from torch import nn

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.structure.plan import PruningPlan
from sirfp.surgery import apply
from sirfp.verify import compare, mask


def pooled(image: torch.Tensor) -> torch.Tensor:
    return image.reshape(1, 16, -1).mean(2)


class ByImage(nn.Module):
    """Works image by image, as detectors do, and writes widths inside the loop and after it."""

    def __init__(self):
        super().__init__()
        self.i, self.j = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 1)
        self.o = nn.Linear(40, 5)

    def forward(self, x):
        x = self.i(x).relu()
        means, sums = [], []
        for image in x:
            means.append(pooled(image))
            sums.append(torch.zeros(1, 16, dtype=x.dtype) + image.mean((1, 2)))
        x = self.j(x).reshape(len(x), 24, -1).mean(2)
        return self.o(torch.cat([torch.cat(means) + torch.cat(sums), x], 1))


class Twice(ByImage):
    """Calls one helper from two places, with different channels."""

    def forward(self, x):
        x = self.i(x).relu()
        y = [self.both(image[:, None], 16) for image in x], [self.both(image[:, None], 24) for image in self.j(x)]
        return self.o(torch.cat([torch.cat(part) for part in y], 1))

    def both(self, image, width):
        return image.transpose(0, 1).reshape(1, width, -1).mean(2)


class ByWidth(nn.Module):
    """A loop whose rounds have channels of different layers: each call has its own size."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 12, 1), nn.Conv2d(12, 20, 1), nn.Conv2d(20, 8, 1)])
        self.o = nn.Linear(40, 5)

    def forward(self, x):
        parts = []
        for layer, width in zip(self.layers, (12, 20, 8), strict=True):
            x = layer(x)
            parts.append(x.reshape(-1, width, 64).mean(2))
        return self.o(torch.cat(parts, 1))


class Recursive(ByImage):
    """A function that calls itself for each image."""

    def forward(self, x):
        x = self.i(x).relu()
        return self.o(torch.cat([self.means(x, 16), self.means(self.j(x), 24)], 1))

    def means(self, x, width):
        first = x[0].reshape(1, width, -1).mean(2)
        return torch.cat([first, self.means(x[1:], width)]) if len(x) > 1 else first


class Indexed(Recursive):
    """Many calls by an object's `__getitem__`, which Python specialises after some of them."""

    def means(self, x, width):
        views = Views(x, width)
        return torch.stack([torch.cat([views[i] for i in range(len(x))]) for _ in range(10)]).mean(0)


class Views:
    def __init__(self, x, width):
        self.x, self.width = x, width

    def __getitem__(self, i):
        return self.x[i].reshape(1, self.width, -1).mean(2)


class Evaluated(Recursive):
    """Code that is compiled anew for each image."""

    def means(self, x, width):
        return torch.cat([eval("image.reshape(1, width, -1).mean(2)", {"image": i, "width": width}) for i in x])


class ThenByWidth(nn.Module):
    """A loop over images, then one over layers of other widths."""

    def __init__(self):
        super().__init__()
        self.i, self.layers = nn.Conv2d(3, 16, 1), nn.ModuleList([nn.Conv2d(16, 12, 1), nn.Conv2d(12, 12, 1)])
        self.o = nn.Linear(40, 5)

    def forward(self, x):
        x = self.i(x).relu()
        parts = [torch.cat([pooled(image) for image in x])]
        for layer in self.layers:
            x = layer(x)
            parts.append(x.reshape(len(x), 12, -1).mean(2))
        return self.o(torch.cat(parts, 1))


class ByImageAndWidth(ByImage):
    """A loop over images, and in it one over layers of other widths."""

    def forward(self, x):
        x = self.i(x).relu()
        both = zip(x, self.j(x), strict=True)
        parts = [[y.reshape(1, w, -1).mean(2) for y, w in zip(pair, (16, 24), strict=True)] for pair in both]
        return self.o(torch.cat([torch.cat(part, 1) for part in parts]))


class Branching(ByImage):
    """Takes a branch for more than one image that calls the same function."""

    def forward(self, x):
        x = self.i(x).relu()
        if len(x) > 1:
            x = x.reshape(len(x), -1, *x.shape[2:])
        x = x.reshape(len(x), 16, -1), self.j(x).reshape(len(x), 24, -1)
        return self.o(torch.cat([part.mean(2) for part in x], 1))


KINDS = [ByImage, Twice, ByWidth, Recursive, Indexed, Evaluated, ThenByWidth, ByImageAndWidth, Branching]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [1, 3])
def test_a_cut_network_runs_on_any_number_of_images(kind, images):
    torch.manual_seed(0)
    model = kind()
    found = prove(model, torch.rand(images, 3, 8, 8))
    assert sum(g.size for g in found) == 40
    plan = plan_for(found, half_of(found, 0, list(found)))
    cut, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(cut, plan)
    mask(masked, plan)
    for number in (1, 2, 5):
        difference = compare(masked, cut, torch.rand(number, 3, 8, 8))
        assert not difference.problem and difference.relative < 1e-5, (number, difference)


def test_sites_are_numbered_in_a_loop_over_equal_blocks():
    """Blocks of one class share code, whether their own sizes are replaced or not; the code after them is unharmed."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.b = nn.Linear(6, width), nn.Linear(width, 6)
            self.width = [width]

        def forward(self, x):
            return x + self.b(self.a(x).reshape(len(x), *self.width).reshape(len(x), -1, 1).flatten(1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.blocks, self.o = nn.Linear(4, 6), nn.ModuleList([Block(8), Block(8)]), nn.Linear(6, 3)

        def forward(self, x):
            x = self.i(x)
            for block in self.blocks:
                x = block(x)
            return self.o(x.reshape(len(x), 6, 1).flatten(1))

    torch.manual_seed(0)
    found = prove(Net(), torch.rand(2, 4))
    assert {g.size for g in found} == {8, 6}


class Heads(nn.Module):
    """Attention in a loop over layers, whose code takes other widths of heads from the width of the input."""

    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Linear(8, 24), nn.Linear(24, 5)
        self.qkv = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))
        self.p = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.heads = [4, 6]

    def forward(self, x):
        x = self.e(x)
        for qkv, p, heads in zip(self.qkv, self.p, self.heads, strict=True):
            b, n, c = x.shape
            q, k, v = qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
            x = x + p(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))
        return self.o(x)


def test_constants_of_one_site_that_differ_stay_apart():
    torch.manual_seed(0)
    assert sorted(g.size for g in prove(Heads(), torch.rand(2, 6, 8))) == [4, 6, 24]


def test_a_cut_network_lets_go_of_its_inputs():
    """Without waiting for Python's garbage collector."""
    torch.manual_seed(0)
    model, x = ByImage().eval(), torch.rand(2, 3, 8, 8)
    found = find_groups(model, x)
    apply(model, plan_for(found, half_of(found, 0, list(found))))
    gc.disable()
    try:
        x = torch.rand(2, 3, 8, 8)
        held = weakref.ref(x)
        model(x)
        del x
        assert held() is None
    finally:
        gc.enable()


class CropsLargeImages(nn.Module):
    """Crops images of more than 8 pixels by a bound that is a multiple of one of its channels."""

    def __init__(self):
        super().__init__()
        self.i, self.o = nn.Conv2d(3, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.i(x).relu()
        if x.shape[-1] > 8:
            x = x[:, :, :16, :16]
        x = x[:, :8].amax((2, 3)), x[:, 8:16].mean((2, 3))
        return self.o(torch.cat(x, 1))


def test_bounds_in_a_branch_that_other_images_take_stay():
    torch.manual_seed(0)
    model, x = CropsLargeImages().eval(), torch.rand(2, 3, 8, 8)
    found = prove(model, x)
    assert sorted(g.size for g in found) == [8, 8]
    plan = plan_for(found, half_of(found, 0, list(found)))
    cut, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(cut, plan)
    mask(masked, plan)
    for size in (8, 16, 20):
        assert compare(masked, cut, torch.rand(2, 3, size, size)).relative < 1e-5, size


def of_older_version(plan: PruningPlan) -> PruningPlan:
    """Returns a plan whose marks are those of other code, so that its sites are known by their numbers."""
    text, count = re.subn(r" at [0-9a-f]{8}", " at 00000000", plan.to_json())
    assert count
    return PruningPlan.from_json(text)


def of_old_keys(plan: PruningPlan, keys: dict[str, int]) -> PruningPlan:
    return dataclasses.replace(plan, widths={**plan.widths, "": keys})


@pytest.mark.parametrize("kind", [ByImage, Twice, ByWidth, Recursive, ThenByWidth, ByImageAndWidth])
def test_a_plan_of_other_code_knows_the_sites_by_their_numbers(kind):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.rand(2, 3, 8, 8)
    found = find_groups(model, x)
    plan = plan_for(found, half_of(found, 0, list(found)))
    cut, other = copy.deepcopy(model), copy.deepcopy(model)
    apply(cut, plan)
    apply(other, of_older_version(plan))
    for number in (1, 2, 5):
        assert compare(cut, other, torch.rand(number, 3, 8, 8)).relative == 0


def test_keys_of_older_plans_number_the_calls():
    """A module may hold both kinds of keys, after another cut."""
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.rand(2, 3, 8, 8)
    found = find_groups(model, x)
    plan = plan_for(found, half_of(found, 0, list(found)))
    places = [f"call {i} reshape 1 of {n}" for i, n in ((1, 16), (2, 16), (4, 24), (5, 24))]
    widths = {key: 8 if key.endswith("16") else 12 for key in places}
    cut, older = copy.deepcopy(model), copy.deepcopy(model)
    apply(cut, plan)
    apply(older, of_old_keys(plan, widths))
    assert older.sizes_in_calls.keys() == {1, 2, 4, 5}
    assert compare(cut, older, x).relative == 0
    again = find_groups(older, x)
    assert sum(g.size for g in again) == 20
    later = plan_for(again, half_of(again, 0, list(again)))
    apply(cut, later)
    apply(older, later)
    both = copy.deepcopy(model)
    apply(both, of_old_keys(plan, widths).then(later))
    for other in (older, both):
        assert compare(cut, other, x).relative == 0


@pytest.mark.parametrize("kind", slow_but([ByImage, Recursive, ByImageAndWidth], ByImage))
def test_a_compiled_cut_network_knows_the_sites(kind):
    torch.manual_seed(0)
    model, x = kind().eval(), torch.rand(2, 3, 8, 8)
    found = find_groups(model, x)
    apply(model, plan_for(found, half_of(found, 0, list(found))))
    exported = torch.export.export(model, (x,), strict=True).module()
    assert torch.allclose(exported(x), model(x), atol=1e-6)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    for number in (2, 1, 3):
        x = torch.rand(number, 3, 8, 8)
        assert torch.allclose(compiled(x), model(x), atol=1e-6), number


class Broken(ByImage):
    """The compiler breaks the code in two, and runs the second part with a loop over images."""

    def forward(self, x):
        x = self.i(x).relu()
        first = x.reshape(len(x), 16, -1).mean(2)
        torch._dynamo.graph_break()
        return self.o(torch.cat([first, torch.cat([image.reshape(1, 24, -1).mean(2) for image in self.j(x)])], 1))


def test_a_network_that_the_compiler_breaks_in_parts_knows_the_sites_by_their_numbers():
    torch.manual_seed(0)
    model, x = Broken().eval(), torch.rand(2, 3, 8, 8)
    found = find_groups(model, x)
    apply(model, plan_for(found, half_of(found, 0, list(found))))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(x), model(x), atol=1e-6)
