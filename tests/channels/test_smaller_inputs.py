"""The trial runs a model on smaller inputs where they show the same, and on the given ones otherwise."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from cut_proofs import prove
from torch import nn

from sirfp.channels import find_groups, smaller_inputs
from sirfp.channels.smaller_inputs import ratios, same_changes
from sirfp.channels.smaller_inputs import smaller_inputs as smaller


@pytest.fixture(autouse=True)
def _any_size(monkeypatch):
    monkeypatch.setattr(smaller_inputs, "FLOPS", 0)


class Watched(nn.Module):
    """Two convolutions. Notes the shape of each input, in all copies."""

    def __init__(self):
        super().__init__()
        self.shapes = Shared()
        self.a, self.b = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return self.head(self.features(self.a(x).relu()).mean((2, 3)))

    def features(self, x):
        return self.b(x).relu()


class Shared(list):
    def __deepcopy__(self, memo):
        return self


class Table(Watched):
    """Adds a table of positions, so that it runs on one size of images only."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 24, 64, 64))

    def features(self, x):
        return self.b(x) + self.table


class Large(Watched):
    """Takes the first 24 channels by number in large maps: another operation than in small ones."""

    def features(self, x):
        x = self.b(x)
        return x[:, :24].relu() if x.shape[-1] > 40 else x.relu()


class Written(Watched):
    """Writes the number of channels."""

    def features(self, x):
        return self.b(x).reshape(len(x), 24, -1)[..., None].relu()


class ByImage(Watched):
    """Writes the number of channels in a loop over images."""

    def features(self, x):
        return torch.stack([image.reshape(24, -1, 1) for image in self.b(x)])


class Pooled(Watched):
    """Reduces large maps to 2 x 2 positions, smaller ones to one."""

    def features(self, x):
        return torch.nn.functional.max_pool2d(self.b(x), 32)


def tried(model: nn.Module, *shape: int) -> list[tuple[int, ...]]:
    """Finds groups, proves that half of them can be cut, and returns the shapes of the inputs of each run."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    find_groups(model.eval(), x)
    seen = list(model.shapes)
    prove(model, x)
    return seen


@pytest.mark.parametrize("kind", [Watched, Written])
def test_the_trial_runs_on_smaller_images(kind):
    seen = tried(kind(), 1, 3, 256, 256)
    assert seen[0] == seen[-2] == (1, 3, 256, 256), "the trace, and the proof that a cut changes the same"
    assert set(seen[1:-2]) == {(1, 3, 128, 128)} == {seen[-1]} and len(seen) > 5


def test_the_trial_runs_on_fewer_images():
    seen = tried(Watched(), 6, 3, 64, 64)
    assert seen.count((6, 3, 64, 64)) == 2 and set(seen[1:-2]) == {(2, 3, 64, 64)} and len(seen) > 5


def test_costs_are_those_of_the_given_inputs():
    model, x = Watched().eval(), torch.randn(4, 3, 256, 256)
    with_trial, without = find_groups(model, x), find_groups(model, x, trial=False)
    assert with_trial.flops() == without.flops() > 10 * find_groups(model, x[:1, :, :128, :128]).flops()


@pytest.mark.parametrize("kind", [Table, Large, Pooled])
def test_the_trial_runs_on_the_given_images_if_smaller_ones_do_not_show_the_same(kind):
    seen = tried(kind(), 1, 3, 256, 256)
    assert seen.count((1, 3, 128, 128)) == 1, "the trace alone"
    assert seen.count((1, 3, 256, 256)) > 3


def test_a_loop_over_images_keeps_their_number():
    seen = tried(ByImage(), 6, 3, 64, 64)
    assert seen.count((2, 3, 64, 64)) == 1 and seen.count((6, 3, 64, 64)) > 3


def test_what_fails_on_smaller_inputs_only_is_tried_on_the_given_ones():
    """Code that fails in a cut copy with a small map must not freeze what can be cut."""

    class Picky(Watched):
        def features(self, x):
            if x.shape[1] < 16 and x.shape[-1] < 100:
                raise ValueError("too small")
            return super().features(x)

    found = find_groups(Picky().eval(), torch.randn(1, 3, 256, 256))
    assert [group.size for group in found] == [16, 24]


def test_inputs_of_detectron2_become_smaller():
    items = [{"image": torch.zeros(3, 800, 1333), "height": 400, "width": 666, "file_name": "a.png"}] * 6
    first, second = smaller(items)
    assert [tuple(item["image"].shape) for item in first] == [(3, 224, 333)] * 2
    assert first[0]["height"] == 224 and first[0]["width"] == 333 and first[0]["file_name"] == "a.png"
    assert second == items[:2] and tuple(items[0]["image"].shape) == (3, 800, 1333)
    boxes = [{**items[0], "proposals": object()}]
    assert list(smaller(boxes)) == [], "boxes belong to the pixels of the image"
    assert len(list(smaller(items[:3]))) == 1, "two of three images save too little"


def test_all_tensors_of_the_size_of_the_images_are_cut():
    image, mask, number = torch.randn(6, 3, 512, 256), torch.zeros(6, 512, 256), torch.zeros(6)
    both, fewer = smaller({"x": image, "more": (mask, [number, 3, "a"])})
    assert both["x"].shape == (2, 3, 256, 128) and torch.equal(both["x"], image[::3, :, ::2, ::2])
    assert both["more"][0].shape == (2, 256, 128) and both["more"][1][0].shape == (2,)
    assert fewer["x"].shape == (2, 3, 512, 256) and both["more"][1][1:] == [3, "a"]


OTHERS = [
    torch.zeros(2, 3, 255, 255),
    torch.zeros(2, 10, 64),
    torch.zeros(2, 5).long(),
    (),
    UserDict(x=torch.zeros(4, 3, 512, 512)),
]


@pytest.mark.parametrize("inputs", OTHERS)
def test_other_inputs_stay(inputs):
    assert list(smaller(inputs)) == []


class Hidden(Watched):
    """Scales by the number of channels, which shows only where its input is not black."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.Conv2d(16, 24, 3, 2, 1, bias=False)

    def features(self, x):
        x = self.b(x)
        return x * x.shape[1]


@pytest.mark.parametrize("black", [(slice(None), slice(None), slice(150), slice(150)), (slice(2),)])
def test_black_parts_hide_no_fault(black):
    x = torch.randn(4, 3, 256, 256)
    x[black] = 0
    assert [group.name for group in find_groups(Hidden().eval(), x)] == ["a"]


class ByTokens(Watched):
    """Computes with the number of channels in large maps only."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def features(self, x):
        x = self.b(x)
        tokens = x.shape[-2] * x.shape[-1]
        return self.compute(x, min(x.shape[1], tokens // 128), tokens > 1024)


BY_TOKENS = {
    "scale": lambda x, fewer, large: x * fewer**-0.5,
    "scale as a tensor": lambda x, fewer, large: x * torch.tensor(fewer),
    "scale of large maps": lambda x, fewer, large: x * (x.shape[1] if large else 24),
    "number of results": lambda x, fewer, large: x.flatten(2).topk(fewer).values[..., None],
    "kernel": lambda x, fewer, large: nn.functional.avg_pool2d(x, 4 if fewer > 20 else 2),
    "flag": lambda x, fewer, large: x * float(x.shape[1] < x.shape[-1] // 3),
}


@pytest.mark.parametrize("name", BY_TOKENS)
def test_a_width_that_counts_on_large_images_only_stays(name):
    found = find_groups(ByTokens(BY_TOKENS[name]).eval(), torch.randn(1, 3, 256, 256))
    assert [group.name for group in found] == ["a"]


def test_a_size_that_the_code_writes_for_large_images_only_is_set():
    def compute(x, fewer, large):
        return x.reshape(len(x), 24 if large else x.shape[1], -1)[..., None].relu()

    prove(ByTokens(compute), torch.randn(1, 3, 256, 256))


def test_what_a_model_keeps_for_one_size_of_images_is_tried():
    class Keeping(Watched):
        def features(self, x):
            table = vars(self).setdefault("tables", {})
            x, size = self.b(x), x.shape[-1]
            if size not in table:
                table[size] = torch.full((1, x.shape[1], 1, 1), 0.1)
            return x + table[size]

    model, x = Keeping().eval(), torch.randn(1, 3, 256, 256)
    model(x)
    assert [group.name for group in find_groups(model, x)] == ["a"]


def test_inputs_that_cannot_be_made_smaller_stay():
    class Both(Watched):
        def forward(self, x, more):
            return super().forward(x)

    sparse = torch.eye(256)[None].to_sparse()
    assert len(find_groups(Both().eval(), (torch.randn(1, 3, 256, 256), sparse))) == 2


def ran(*shapes, name="aten::relu", number=2.0):
    return [(name, torch.Size(shape), number) for shape in shapes]


def test_passes_run_the_same_operations_if_the_same_dimensions_have_one_element():
    assert ratios(ran((1, 3, 9)), ran((1, 3, 3))) == {3} and ratios(ran((3,)), ran((3,))) == set()
    assert ratios(ran((4,), number=0.5), ran((4,), number=0.25)) == {2}
    assert ratios(ran((1, 3, 9)), ran((1, 3, 1))) is None and ratios(ran((3,)), ran((0,))) is None
    assert ratios(ran((3,)), ran((3,), (3,))) is None and ratios(ran((3,)), ran((1, 3))) is None
    assert ratios(ran((3,)), ran((3,), name="aten::abs")) is None
    assert ratios(ran((3,), number=True), ran((3,), number=False)) is None


def test_a_cut_changes_the_same_if_numbers_differ_in_the_same_ratios_and_places():
    dense = ran((24, 64, 8)), ran((24, 32, 8))
    assert same_changes(dense, (ran((12, 64, 8)), ran((12, 32, 8))))
    assert not same_changes(dense, (ran((12, 64, 8)), ran((12, 16, 8)))), "another ratio"
    assert not same_changes(dense, (ran((12, 32, 8)), ran((12, 32, 8)))), "another place"
    other = [ran((12, size, 8), name="aten::gelu") for size in (64, 16)]
    assert not same_changes(dense, (other[0], other[1]))
    assert same_changes(dense, (ran((12, 64), name="aten::gelu"), ran((12, 32), name="aten::gelu")))
