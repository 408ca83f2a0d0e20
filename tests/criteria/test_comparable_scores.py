"""Scores do not depend on the example's batch or size, on a pyramid's levels, or on how many channels an atom has."""

from __future__ import annotations

import pytest
import torch
from small_networks import NETWORKS, build, mean_square
from torch import nn
from torch.nn import functional

import sirfp
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.prune import calibrate


def scored(model, example, batches, name="sirfp", **options):
    criterion = build_criterion(name, model.eval(), find_groups(model, example).groups, **options)
    if criterion.needs != "weights":
        calibrate(model, criterion, batches, mean_square)
    return criterion.scores()


def _norm(channels):
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))


class Pyramid(nn.Module):
    """A head on five levels, the last of 2 x 2 positions."""

    def __init__(self):
        super().__init__()
        self.stem, self.lat = nn.Conv2d(3, 16, 3, padding=1), _norm(16)
        self.tower = nn.ModuleList([_norm(16), _norm(16)])
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x, levels = self.lat(self.stem(x)), []
        for _ in range(5):
            y = functional.relu(x)
            for layer in self.tower:
                y = functional.relu(layer(y))
            levels.append(self.head(y))
            x = functional.max_pool2d(x, 2)
        return levels


class Regions(nn.Module):
    """A head on regions of a map, as in Faster R-CNN, after layers on the map itself."""

    def __init__(self):
        super().__init__()
        self.stem, self.lat, self.box, self.head = (
            nn.Conv2d(3, 16, 3, padding=1),
            _norm(16),
            _norm(16),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        x = functional.relu(self.lat(self.stem(x)))
        regions = torch.cat([functional.adaptive_avg_pool2d(x[:, :, i : i + 8], 4) for i in range(0, 24, 8)])
        return self.head(functional.relu(self.box(regions)).mean((2, 3)))


@pytest.mark.parametrize("kind", [Pyramid, Regions])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_head_on_maps_of_several_sizes_is_as_redundant_as_the_layers_before_it(kind, stride):
    model, example = build(kind), torch.randn(1, 3, 32, 32)
    batches = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    scores = scored(model, example, batches, stride=stride)
    means = {name: float(score.mean()) for name, score in scores.items()}
    assert len(means) > 2 and min(means.values()) > 2 * means["lat.0"], means
    plan = sirfp.prune(model, example, "sirfp", 0.5, batches, stride=stride, partitions=(), reconstruction=0)
    assert all(4 <= len(kept) <= 15 for kept in plan.kept.values()), plan.kept


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.fc2(functional.relu(self.fc1(functional.relu(self.norm(self.conv(x))).mean((2, 3)))))


class ChannelsLast(nn.Module):
    """Linear layers on maps with the channels last, as in ConvNeXt, and a squeeze of the maps."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.LayerNorm(12)
        self.up, self.down, self.gate = nn.Linear(12, 24), nn.Linear(24, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.conv(x).permute(0, 2, 3, 1)
        x = x + self.down(functional.gelu(self.up(self.norm(x))))
        return self.head((x * self.gate(x.mean((1, 2), keepdim=True)).sigmoid()).mean((1, 2)))


@pytest.mark.parametrize("kind", [Pooled, ChannelsLast, NETWORKS[10]], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", ["sirfp", "sirfp_joint"])
def test_scores_depend_on_the_images_and_not_on_the_example(kind, name):
    model, batches = build(kind), [torch.randn(2, 3, 16, 16) for _ in range(2)]
    first = scored(model, torch.randn(1, 3, 16, 16), batches, name)
    for shape in ((8, 3, 16, 16), (64, 3, 16, 16), (1, 3, 32, 32)):
        other = scored(model, torch.randn(shape), batches, name)
        assert first.keys() == other.keys()
        assert all(torch.equal(score, other[group]) for group, score in first.items()), shape


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (5, 3, 16, 16)])
def test_positions_are_those_of_one_map_of_one_image(shape):
    found = find_groups(build(ChannelsLast), torch.randn(shape))
    positions = {f.module: f.positions for group in found for f in group.features}
    assert (
        positions.items() <= {"norm": 256, "up": 256, "down": 256, "gate": 1, "conv": 256}.items() and "up" in positions
    )
    pooled = find_groups(build(Pooled), torch.randn(shape))
    assert [f.positions for group in pooled for f in group.features] == [256, 1]


class Blocks(nn.Module):
    """Two layers of 24 channels, plain and in groups: an atom of the second has `groups` channels."""

    def __init__(self, groups: int):
        super().__init__()
        self.plain, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.mixed = nn.Conv2d(24, 24, 1, groups=groups)
        self.after, self.head = nn.BatchNorm2d(24), nn.Conv2d(24, 4, 1, groups=groups)

    def forward(self, x):
        return self.head(functional.relu(self.after(self.mixed(functional.relu(self.norm(self.plain(x)))))))


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_an_atom_of_equal_channels_is_worth_one_of_them(groups):
    """Every atom of the grouped layer holds `groups` equal channels; the same channels stand alone in another layer."""
    torch.manual_seed(0)
    alone, tied = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)), Equal(groups)
    tied.layer.weight.data = alone[0].weight.data.repeat(groups, 1, 1, 1)
    tied.layer.bias.data = alone[0].bias.data.repeat(groups)
    for norm, times in ((alone[1], 1), (tied.norm, groups)):
        norm.weight.data = torch.linspace(0.5, 2, 8).repeat(times)
    tied.head.weight.data = alone[2].weight.data.repeat(groups, 1, 1, 1)
    batches = [torch.randn(4, 3, 8, 8)]
    for name in ("magnitude", "slimming", "fpgm"):
        one, several = (next(iter(scored(m, batches[0], batches, name).values())) for m in (alone, tied))
        torch.testing.assert_close(one, several, rtol=1e-4, atol=1e-6)
    # an atom repeats `groups` copies of each other channel, of which each is as redundant as the one that is alone
    one, several = (next(iter(scored(m, batches[0], batches).values())) for m in (alone, tied))
    torch.testing.assert_close(groups * one, several, rtol=1e-4, atol=1e-6)


class Equal(nn.Module):
    """A layer whose channels c, c + 8, c + 16, ... are read by separate groups of a convolution."""

    def __init__(self, groups: int):
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 8 * groups, 1), nn.BatchNorm2d(8 * groups)
        self.head = nn.Conv2d(8 * groups, 2 * groups, 1, groups=groups)

    def forward(self, x):
        return self.head(self.norm(self.layer(x)))


@pytest.mark.parametrize("name", ["taylor", "dcfp"])
def test_the_change_of_the_loss_by_an_atom_is_shared_by_its_channels(name):
    """Four copies of a network side by side: an atom changes the loss as four channels do, each in its own copy."""
    model = Equal(4).eval()
    [group] = find_groups(model, torch.randn(1, 3, 8, 8)).groups
    criterion = build_criterion(name, model, [group], **({"ema": 0.5} if name == "dcfp" else {}))
    gradient = torch.randn(32)
    model.norm.weight.data = torch.ones(32)
    model.norm.bias.data = torch.zeros(32)
    model.norm.weight.grad, model.norm.bias.grad = gradient, torch.zeros(32)
    criterion.step()
    each = gradient.view(4, 8)
    expected = each.sum(0).square() / 4 if name == "taylor" else 0.5 * each.clamp(min=0).mean(0)
    torch.testing.assert_close(criterion.scores()[group.name], expected)


def test_a_rank_by_cost_is_per_channel_too():
    """The cost of an atom of four channels is four times that of one, its worth is the mean: both per channel."""
    from sirfp.budget.allocation import worth_for_cost

    worth = {}
    for groups in (1, 4):
        found = find_groups(Equal(groups).eval(), torch.randn(1, 3, 8, 8))
        worth[groups] = worth_for_cost(found, {g.name: torch.ones(g.size) for g in found}, found.flops, 1.0)["layer"]
    assert len(worth[4]) == len(worth[1]) and torch.allclose(worth[1] * 4, worth[4])  # a share of four times the FLOPs
