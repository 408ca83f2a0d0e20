"""The trial runs a model on smaller inputs where they show the same, and on the given ones otherwise."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from cut_proofs import prove
from torch import nn

from sirfp.channels import find_groups, smaller_inputs
from sirfp.channels.smaller_inputs import same_operations
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
    assert seen.count((1, 3, 256, 256)) == 1 and set(seen[1:]) == {(1, 3, 128, 128)} and len(seen) > 3


def test_the_trial_runs_on_fewer_images():
    seen = tried(Watched(), 6, 3, 64, 64)
    assert seen[0] == (6, 3, 64, 64) and set(seen[1:]) == {(2, 3, 64, 64)} and len(seen) > 3


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
    seen = tried(ByImage(), 3, 3, 64, 64)
    assert seen.count((2, 3, 64, 64)) == 1 and seen.count((3, 3, 64, 64)) > 3


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
    items = [{"image": torch.zeros(3, 800, 1333), "height": 400, "width": 666, "file_name": "a.png"}] * 3
    first, second = smaller(items)
    assert [tuple(item["image"].shape) for item in first] == [(3, 224, 333)] * 2
    assert first[0]["height"] == 224 and first[0]["width"] == 333 and first[0]["file_name"] == "a.png"
    assert second == items[:2] and tuple(items[0]["image"].shape) == (3, 800, 1333)
    boxes = [{**items[0], "proposals": object()}]
    assert list(smaller(boxes)) == [], "boxes belong to the pixels of the image"


def test_all_tensors_of_the_size_of_the_images_are_cut():
    image, mask, number = torch.randn(4, 3, 512, 256), torch.zeros(4, 512, 256), torch.zeros(4)
    both, fewer = smaller({"x": image, "more": (mask, [number, 3, "a"])})
    assert both["x"].shape == (2, 3, 256, 128) and torch.equal(both["x"], image[:2, :, :256, :128])
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


def test_operations_are_the_same_if_the_same_dimensions_have_one_element():
    def ran(*shapes):
        return [("aten::relu", [torch.Size(shape) for shape in shapes])]

    assert same_operations(ran((1, 3, 9)), ran((1, 5, 2)))
    assert not same_operations(ran((1, 3, 9)), ran((1, 3, 1)))
    assert not same_operations(ran((3,)), ran((0,))) and not same_operations(ran((3,)), ran((3,), (3,)))
    assert not same_operations(ran((3,)), ran((3,)) * 2)
