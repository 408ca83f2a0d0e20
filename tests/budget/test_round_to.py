"""ROUND_TO holds for every layer that is cut, also where a channel of one layer is several of another."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from marks import slow_but
from torch import nn

import sirfp
from sirfp.budget.aligned import aligned
from sirfp.budget.allocation import grid
from sirfp.budget.decision import decide
from sirfp.budget.given_widths import with_given_widths
from sirfp.budget.limits import Limits
from sirfp.budget.target import Flops
from sirfp.channels import find_groups


class Shuffled(nn.Module):
    """A pixel shuffle: four channels of `up` are one of `c`."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.shuffle = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 256, 3), nn.PixelShuffle(2)
        self.c, self.out = nn.Conv2d(64, 64, 3), nn.Conv2d(64, 3, 3)

    def forward(self, x):
        return self.out(torch.relu(self.c(torch.relu(self.shuffle(self.up(torch.relu(self.a(x))))))))


class Unshuffled(nn.Module):
    """The other way round: one channel of `a` is four of `c`."""

    def __init__(self):
        super().__init__()
        self.a, self.shuffle = nn.Conv2d(3, 64, 3, padding=1), nn.PixelUnshuffle(2)
        self.c, self.out = nn.Conv2d(256, 64, 3), nn.Conv2d(64, 3, 3)

    def forward(self, x):
        return self.out(torch.relu(self.c(self.shuffle(torch.relu(self.a(x))))))


class Joined(nn.Module):
    """A map beside its negative, as in ghost modules: one channel of `a` is two of `c` and one of `b`."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 32, 3)
        self.c, self.out = nn.Conv2d(128, 32, 3), nn.Conv2d(32, 3, 3)

    def forward(self, x):
        x = self.a(x)
        return self.out(torch.relu(self.b(x) + self.c(torch.cat([x, -x], 1))))


class Grouped(nn.Sequential):
    """One channel of each of eight groups goes at once."""

    def __init__(self):
        grouped = nn.Conv2d(128, 128, 3, groups=8)
        super().__init__(nn.Conv2d(3, 128, 3), nn.ReLU(), grouped, nn.ReLU(), nn.Conv2d(128, 3, 3))


class NarrowGroups(nn.Module):
    """Groups of four channels, as in ResNeXt, between layers that can lose channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 32, 1)
        self.c, self.d, self.out = nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 64, 1), nn.Conv2d(64, 3, 3)

    def forward(self, x):
        return self.out(torch.relu(self.d(torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x)))))))))


class Flattened(nn.Sequential):
    """One channel is nine inputs of the linear layer."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 64, 14), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 9, 64), nn.Linear(64, 3))


class Transposed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.ConvTranspose2d(3, 64, 3), nn.ReLU(), nn.ConvTranspose2d(64, 64, 3), nn.Conv2d(64, 3, 3))


NETWORKS = {
    **{kind.__name__: kind for kind in (Shuffled, Unshuffled, Joined, Grouped, Flattened, Transposed)},
    "NarrowGroups": NarrowGroups,
    "regnetx_002": lambda: timm.create_model("regnetx_002"),
    "ghostnet_050": lambda: timm.create_model("ghostnet_050"),
}


def depthwise(layer: nn.Module) -> bool:
    return layer.groups == layer.in_channels


def sides(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Inputs, outputs and, of grouped convolutions, inputs of a group."""
    return {
        name: (layer.in_channels, layer.out_channels, *[layer.in_channels // layer.groups] * (not depthwise(layer)))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.conv._ConvNd)
    }


@pytest.mark.parametrize("round_to", slow_but([4, 8], 8))
@pytest.mark.parametrize("name", slow_but(NETWORKS, *(name for name in NETWORKS if name != "ghostnet_050")))
def test_every_convolution_that_is_cut_has_a_multiple(name, round_to):
    model = NETWORKS[name]().eval()
    dense, x = sides(model), torch.randn(1, 3, *((64, 64) if "net" in name else (16, 16)))
    plan = sirfp.prune(model, x, "magnitude", keep_flops=0.6, round_to=round_to)
    cut = [
        (key, side, now)
        for key, both in sides(model).items()
        for side, now in enumerate(both)
        if dense[key][side] != now
    ]
    assert cut and not [one for one in cut if one[2] % round_to]
    assert plan.flops[1] <= 0.6 * plan.flops[0]


@pytest.mark.parametrize(
    "kind, layer, round_to, step",
    [
        (Shuffled, "up", 8, 8),  # four channels of `up` at once, but one of `c`
        (Unshuffled, "a", 8, 8),
        (Joined, "a", 8, 8),
        (Grouped, "0", 8, 8),  # one channel of each group
        (Grouped, "0", 4, 4),
        (Flattened, "0", 6, 6),
        (Transposed, "0", 16, 16),
    ],
)
def test_steps_are_no_larger_than_needed(kind, layer, round_to, step):
    found = find_groups(kind().eval(), torch.randn(1, 3, 16, 16), trial=False)
    widths = grid(found[layer], Limits(round_to=round_to))
    assert widths[1] - widths[0] == step


class Squeezed(nn.Module):
    """Squeeze and excitation: 20 channels between layers of 64."""

    def __init__(self):
        super().__init__()
        self.a, self.reduce, self.expand = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 20, 1), nn.Conv2d(20, 64, 1)
        self.out = nn.Conv2d(64, 3, 3)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.out(x * self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid())


class SideBySide(nn.Module):
    """A convolution reads two layers side by side, of 20 and of 44 channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 20, 3), nn.Conv2d(3, 44, 3), nn.Conv2d(64, 32, 3)
        self.out = nn.Conv2d(32, 3, 3)

    def forward(self, x):
        return self.out(torch.relu(self.c(torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1))))


class TwoBranches(nn.Module):
    """Two branches that share no kernel, each with 20 channels in the middle."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (
            nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 20, 1), nn.ReLU(), nn.Conv2d(20, 3, 1))
            for _ in range(2)
        )

    def forward(self, x):
        return self.left(x), self.right(x)


def kept_after(model, cut, limits, keep_flops=0.8):
    """The widths of a plan for which these groups are worth nothing."""
    x = torch.randn(1, 3, 16, 16)
    found = find_groups(model.eval(), x)
    criterion = SimpleNamespace(cost_exponent=0.0, refine=lambda group, kept: kept)
    criterion.scores = lambda: {g.name: torch.rand(g.size) + 10 * (g.name not in cut) for g in found}
    choice = decide(model, x, found, criterion, Flops(keep_flops), limits)
    assert found.flops(choice.keep) <= keep_flops * found.flops()
    return {group.name: int(choice.keep[found.spans[group.name]].sum()) for group in found}


@pytest.mark.parametrize("round_to, narrow", [(8, 16), (16, 16), (4, 20), (32, 20)])
def test_a_kernel_that_is_cut_has_multiples_on_both_sides(round_to, narrow):
    widths = kept_after(Squeezed(), {"a"}, Limits(round_to=round_to))
    assert widths["a"] < 64 and widths["a"] % round_to == 0
    assert widths["reduce"] == narrow  # 20 channels cannot become a multiple of 32


def test_layers_that_are_read_side_by_side_have_multiples():
    widths = kept_after(SideBySide(), {"b"}, Limits(round_to=8))
    assert widths["b"] < 44 and widths["b"] % 8 == widths["a"] % 8 == widths["c"] % 8 == 0
    assert widths["a"] == 16


class Stream(nn.Module):
    """A residual stream of 20 channels, which two layers make."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 20, 3)
        self.b, self.c = nn.Conv2d(20, 64, 1), nn.Conv2d(64, 20, 1)
        self.out = nn.Conv2d(20, 3, 1)

    def forward(self, x):
        x = torch.relu(self.a(torch.relu(self.stem(x))))
        return self.out(torch.relu(x + self.c(torch.relu(self.b(x)))))


def test_residual_streams_stay_whole():
    widths = kept_after(Stream(), {"stem"}, Limits(round_to=8), 0.9)
    assert widths["stem"] < 64 and widths["a"] == 20


def test_at_most_a_quarter_is_cut_for_a_multiple():
    widths = kept_after(Squeezed(), {"a"}, Limits(round_to=12))  # 12 of 20
    assert widths["a"] < 64 and widths["reduce"] == 20


def test_kernels_that_are_not_cut_and_given_widths_stay():
    model, limits = TwoBranches().eval(), Limits(round_to=8)
    found = find_groups(model, torch.randn(1, 3, 16, 16))
    keep = np.ones(found.atoms, dtype=bool)
    assert aligned(found, keep, limits) is limits
    keep[found.spans["left.0"]][:8] = False
    assert aligned(found, keep, limits).given == (("left.2", 16),)
    assert aligned(found, keep, Limits()).given == ()
    given = with_given_widths(Limits(round_to=8, keep={"left.2": 1.0}), model, found)
    assert aligned(found, keep, given) is given


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ghostnet_100", "efficientnet_lite0"])
def test_no_kernel_of_a_pruned_network_is_cut_on_one_side_only(name):
    model = timm.create_model(name).eval()
    shapes = {key: layer.weight.shape for key, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    plan = sirfp.prune(model, torch.randn(1, 3, 64, 64), "magnitude", keep_flops=0.5, round_to=8)
    assert plan.flops[1] >= 0.495 * plan.flops[0]
    modules = dict(model.named_modules())
    cut = {key: modules[key].weight.shape for key, shape in shapes.items() if modules[key].weight.shape != shape}
    sides = [(key, side, n) for key, shape in cut.items() for side, n in enumerate(shape[:2]) if n > 8]
    assert len(cut) > 20 and not [one for one in sides if one[2] % 8]
