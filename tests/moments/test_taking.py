"""Moments of layers' inputs: equal to those of the rows, stable at large means, halves by images, layers by keyword."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.moments import CentredSums, InputMoments, centred, take_moments, taking
from sirfp.network.forward import inference

IMAGE = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Reader(nn.Module):
    """A convolution, and a layer that reads it in one of several ways."""

    def __init__(self, way: str = "plain"):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.reader = nn.Linear(8, 6) if way == "pooled" else nn.Conv2d(8, 6, 1)
        self.way = way

    def forward(self, x):
        x = self.first(input=x)
        if self.way == "pooled":
            return self.reader(input=x.mean((2, 3)))
        if self.way == "one image":
            return torch.stack([self.reader(image) for image in x])
        return self.reader(input=x) if self.way == "keyword" else self.reader(x)


def take(model, batches):
    with inference(model):
        return take_moments(model, find_groups(model, IMAGE), batches)


@pytest.mark.parametrize("way", ["plain", "keyword", "one image", "pooled"])
def test_moments_are_those_of_what_layers_read(way):
    model = Reader(way).eval()
    moments = take(model, [IMAGE, 2 * IMAGE])
    with torch.no_grad():
        maps = [model.first(x) for x in (IMAGE, 2 * IMAGE)]
    rows = torch.cat([x.mean((2, 3)) if way == "pooled" else x.movedim(1, -1).flatten(0, -2) for x in maps]).double()
    assert list(moments) == ["reader.weight"]
    mean, covariance, count = moments["reader.weight"].statistics()
    assert count == len(rows) and moments["reader.weight"].images == 4
    torch.testing.assert_close(mean, rows.mean(0), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(covariance, rows.T.cov(correction=0), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("way", ["keyword", "pooled"])
@pytest.mark.parametrize("criterion", ["magnitude", "sirfp"])
def test_layers_called_by_keyword_are_refitted(way, criterion):
    model = Reader(way).eval()
    plan = sirfp.prune(model, IMAGE, criterion, 0.6, calibration=[IMAGE, 2 * IMAGE])
    assert plan.flops[1] < plan.flops[0] and model(IMAGE).isfinite().all()


class AllByKeyword(nn.Module):
    """Every layer is called by keyword, norms and modules of one's own too."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.block = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), Checks(16)
        self.last, self.head = nn.Conv2d(16, 12, 3), nn.Linear(12, 4)

    def forward(self, x):
        x = self.block(maps=torch.relu(input=self.norm(input=self.first(input=x))))
        return self.head(input=torch.relu(self.last(input=x)).mean((2, 3)))


class Checks(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width, self.norm = width, nn.BatchNorm2d(width)

    def forward(self, *, maps):
        assert maps.shape[1] == self.width
        return self.norm(input=maps)


@pytest.mark.parametrize("criterion", ["magnitude", "sirfp", "sirfp_joint", "taylor", "slimming", "fpgm", "dcfp"])
def test_layers_norms_and_blocks_called_by_keyword_are_pruned(criterion):
    model = AllByKeyword().eval()
    plan = sirfp.prune(
        model, IMAGE, criterion, 0.6, calibration=[IMAGE, 2 * IMAGE], loss=lambda m, x: m(x).square().mean()
    )
    assert {"first", "last"} <= plan.kept.keys() and len(plan.kept["first"]) < 16
    assert model.block.width == model.norm.num_features == len(plan.kept["first"])
    assert model(IMAGE).isfinite().all()


def test_halves_hold_other_images():
    model = Reader().eval()
    (alone,) = take(model, [IMAGE]).values()
    (two,) = take(model, [IMAGE[:1], IMAGE[1:]]).values()
    for one, other in zip(alone.halves, two.halves, strict=True):
        assert float(one.rows) == float(other.rows) == 144
        torch.testing.assert_close(one.mean, other.mean)
        torch.testing.assert_close(one.covariance(), other.covariance())
    (single,) = take(model, [IMAGE[:1]]).values()
    assert [float(half.rows) for half in single.halves] == [144, 0] and single.images == 1


def test_features_that_are_not_finite_count_for_nothing():
    model = Reader().eval()
    once, twice = take(model, [IMAGE, IMAGE]), take(model, [IMAGE, IMAGE * torch.nan, IMAGE])
    for one, two in zip(once["reader.weight"].statistics(), twice["reader.weight"].statistics(), strict=True):
        torch.testing.assert_close(one, two)
    assert take(model, [IMAGE * torch.inf]) == {}


@pytest.mark.parametrize("first", [0.0, 1.0], ids=["a first batch of zeros", "all batches alike"])
@pytest.mark.parametrize("ratio", [1, 100, 1000, 1e5])
def test_means_far_above_the_deviations_lose_nothing(ratio, first):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator) for _ in range(8)]
    batches = [batch.cumsum(1) + ratio for batch in batches]
    batches[0] *= first
    sums, others, whole = CentredSums(6), CentredSums(6), torch.cat(batches).double()
    for index, batch in enumerate(batches):
        (sums if index % 2 else others).add(batch)
    both = sums.joined(others)
    torch.testing.assert_close(both.mean, whole.mean(0), rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(both.covariance(), whole.T.cov(correction=0), rtol=1e-4, atol=1e-4)
    joined = CentredSums(6).joined(both)
    torch.testing.assert_close(joined.covariance(), both.covariance())


def test_one_row_has_no_covariance():
    sums = CentredSums(64)
    sums.add(torch.rand(1, 64) * 50)
    assert not sums.covariance().any() and int(sums.rows) == 1


def test_processes_add_up():
    """Two processes, played one after the other: each adds what the other one has."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(20, 5, generator=generator) + 100, torch.randn(30, 5, generator=generator) - 3]
    sums = [CentredSums(5), CentredSums(5)]
    for one, rows in zip(sums, parts, strict=True):
        one.add(rows)
    whole, mean = torch.cat(parts).double(), torch.cat(parts).double().mean(0)
    step = sums[1].mean - mean
    other = sums[1].products + torch.outer(step, step).mul(30)[torch.ones(5, 5).tril() > 0].float()
    added = iter([sums[1].rows, sums[1].mean * 30, other])
    sums[0].reduce(lambda tensor: tensor.add_(next(added)))
    torch.testing.assert_close(sums[0].mean, mean)
    torch.testing.assert_close(sums[0].covariance(), whole.T.cov(correction=0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [2, 512])
def test_packed_halves_are_unpacked_to_symmetric_matrices(columns, monkeypatch):
    monkeypatch.setattr(centred, "COLUMNS", columns)
    matrix = torch.randn(7, 7)
    matrix = matrix + matrix.T
    assert torch.equal(centred.unpacked(centred.packed(matrix)), matrix.double())


def test_sums_are_equal_if_all_their_values_are():
    rows = torch.randn(6, 3)
    one, same, other = CentredSums(3), CentredSums(3), CentredSums(3)
    one.add(rows)
    same.add(rows)
    other.add(rows * torch.tensor([1, 1, -1]))
    assert one.equal(same) and not one.equal(other) and not one.equal(CentredSums(3)) and not one.equal(CentredSums(4))


class Readers(nn.Module):
    """Layers that read one tensor, this tensor changed in place, another one, and the first in some batches only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.make = nn.Conv2d(3, 8, 1)
        self.one, self.two, self.tap = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1, stride=2), nn.Conv2d(8, 4, 3, padding=1)
        self.changed, self.other, self.seldom = (nn.Conv2d(8, 4, 1) for _ in range(3))
        self.mirrored = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
        self.calls = 0

    def forward(self, x):
        x = self.make(x)
        y = self.one(x) + self.tap(x) + self.mirrored(x) + self.other(x.square())
        y = y.mean() + self.two(x).mean()
        if self.calls % 2 == 0:
            y = y + self.seldom(x).mean()
        self.calls += 1
        return y + self.changed(x.relu_()).mean()


def test_layers_of_one_input_share_its_moments_and_no_others_do(monkeypatch):
    model, batches = Readers().eval(), [torch.randn(4, 3, 6, 6) for _ in range(5)]
    copied = []
    copy = InputMoments.copy_channels
    monkeypatch.setattr(InputMoments, "copy_channels", lambda self, other: copied.append(self) or copy(self, other))
    with inference(model):
        found = find_groups(model, batches[0])
        model.calls = 0
        shared = take_moments(model, found, batches)
        monkeypatch.setattr(taking._Layer, "add", lambda *given: None)
        model.calls = 0
        apart = take_moments(model, found, batches)
    counts = {name: sum(moments is one for one in copied) for name, moments in shared.items()}
    assert counts["tap.weight"] == counts["two.weight"] == 5 and counts["seldom.weight"] == 1
    assert sum(counts.values()) == 11
    for name in apart:
        assert shared[name].same_channels(apart[name]) and shared[name].images == apart[name].images
