"""Models whose number of results depends on values are cut, and a wrong cut of them is still found."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import detection
from torchvision.ops import nms

import sirfp
from sirfp.channels import find_groups
from sirfp.verify.choices import Choices

X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """Three convolutions; the last one makes scores and boxes."""

    wrong = False

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, padding=1), nn.Conv2d(16, 12, 3, 2, padding=1)
        self.head = nn.Conv2d(12, 5, 1)

    def maps(self, x):
        x = self.a(x).relu()
        if self.wrong:
            x = x / x.shape[1]
        return self.head(self.b(x).relu())


class Detects(Body):
    """Boxes above a threshold, without overlaps, the best first; the maps are not returned."""

    def forward(self, x):
        rows = self.maps(x).flatten(2).transpose(1, 2)[0]
        scores, corner, size = rows[:, 0].sigmoid(), rows[:, 1:3], rows[:, 3:].sigmoid() + 0.1
        found = scores > scores.mean()
        boxes, scores = torch.cat([corner, corner + size], 1)[found], scores[found]
        keep = nms(boxes, scores, 0.4)
        return {"boxes": boxes[keep], "scores": scores[keep]}


class FindsNothing(Detects):
    """A threshold that no score reaches, so that all results are empty."""

    def forward(self, x):
        rows = self.maps(x).flatten(2).transpose(1, 2)[0]
        return rows[rows[:, 0].sigmoid() > 1.5]


class KeyPoints(Body):
    """Positions of local maxima, as whole numbers."""

    def forward(self, x):
        heat = self.maps(x)[:, 0]
        return (heat == F.max_pool2d(heat, 3, 1, 1)).nonzero()


class ClassMap(Body):
    def forward(self, x):
        return self.maps(x).argmax(1)


class WantsItsValues(Body):
    """Raises for other values than those of the dense model."""

    def forward(self, x):
        maps = self.maps(x)
        total = float(maps.sum())
        self.total = getattr(self, "total", total)
        if abs(total - self.total) > 1e-3:
            raise ValueError("nothing was found")
        return maps


class ByNumpy(Detects):
    """Chooses by code that no dispatch mode sees."""

    def forward(self, x):
        rows = self.maps(x).flatten(2).transpose(1, 2)[0]
        return rows[torch.from_numpy(rows[:, 0].numpy() > float(rows[:, 0].mean()))]


KINDS = [Detects, FindsNothing, KeyPoints, ClassMap, ByNumpy]


def build(kind, wrong=False) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    model.wrong = wrong
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_cut(kind):
    assert [g.name for g in find_groups(build(kind), X)] == ["a", "b"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_cut_is_found_behind_thresholds(kind):
    found = find_groups(build(kind, wrong=True), X)
    assert [g.name for g in found] == ["b"]
    assert "computes another" in {f.name: f.reason for f in found.frozen}["a"]


def test_where_other_values_raise_the_way_round_is_named():
    model = build(WantsItsValues)
    model(X)
    reasons = {f.name: f.reason for f in find_groups(model, X).frozen}
    assert "nothing was found" in reasons["a"] and "wrap it in a module" in reasons["a"]


DETECTORS = {
    "retinanet": lambda: detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    ),
    "fasterrcnn": lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64
    ),
    "keypointrcnn": lambda: detection.keypointrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=2, min_size=64, max_size=64
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_of_torchvision_are_cut(name):
    torch.manual_seed(0)
    model, images = DETECTORS[name]().eval(), [torch.rand(3, 64, 64)]
    plan = sirfp.prune(model, images, "random", keep_flops=0.5)
    assert 0.45 < plan.flops[1] / plan.flops[0] <= 0.5
    model(images)
    target = {
        "boxes": torch.tensor([[5.0, 5.0, 50.0, 60.0]]),
        "labels": torch.tensor([1]),
        "keypoints": torch.tensor([20.0, 20.0, 1.0]).repeat(1, 17, 1),
    }
    sum(model.train()(images, [target]).values()).backward()


def test_choices_of_a_run_are_repeated_where_rounding_would_change_them():
    x = torch.tensor([1.0, 3.0, 2.0, 3.0])
    near, far = x + torch.tensor([0, 0, 0, 1e-6]), x + torch.tensor([0, 0, 2.0, 0])

    def choose(x):
        values, order = x.sort(descending=True)
        return values, order, x > 3.0, int(x[3]), x.round(), x.topk(2)[1], float(x.max(0)[0])

    with Choices() as made:
        first = choose(x)
    with Choices(made):
        again = choose(near)
    assert torch.equal(again[0], near[first[1]]) and torch.equal(again[1], first[1])
    assert torch.equal(again[2], first[2]) and torch.equal(again[5], first[5])
    with Choices(made):
        other = choose(far)
    assert other[1].tolist()[0] == 2 and other[2].tolist() == [False, False, True, False]
