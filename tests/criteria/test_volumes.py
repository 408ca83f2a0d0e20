"""Networks of volumes and of lines are pruned by every criterion, with and without the edge term."""

from __future__ import annotations

import pytest
import torch
from small_networks import mean_square
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.criteria import CRITERIA


def plain():
    return nn.Sequential(nn.Conv3d(3, 16, 3), nn.ReLU(), nn.Conv3d(16, 16, 3), nn.ReLU(), nn.Conv3d(16, 2, 1))


class Block(nn.Module):
    def __init__(self, channels: int, norm: type[nn.Module] = nn.BatchNorm3d):
        super().__init__()
        self.a, self.na = nn.Conv3d(channels, channels, 3, padding=1, bias=False), norm(channels)
        self.b, self.nb = nn.Conv3d(channels, channels, 3, padding=1, bias=False), norm(channels)

    def forward(self, x):
        return torch.relu(x + self.nb(self.b(torch.relu(self.na(self.a(x))))))


class Residual(nn.Module):
    """A residual network of volumes that ends with a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2))
        self.blocks = nn.Sequential(Block(16), Block(16, lambda channels: nn.GroupNorm(8, channels)))
        self.up, self.head = nn.ConvTranspose3d(16, 12, 2, 2), nn.Conv3d(12, 3, 1)

    def forward(self, x):
        return self.head(torch.relu(self.up(self.blocks(self.stem(x)))))


class Video(nn.Module):
    """Convolutions over space and over time apart, a depthwise one, and a linear layer on the last dimension."""

    def __init__(self):
        super().__init__()
        self.space, self.norm = nn.Conv3d(3, 12, (1, 3, 3), padding=(0, 1, 1)), nn.BatchNorm3d(12)
        self.time, self.own = nn.Conv3d(12, 16, (3, 1, 1), padding=(1, 0, 0)), nn.Conv3d(16, 16, 3, groups=16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = self.own(torch.relu(self.time(torch.relu(self.norm(self.space(x))))))
        return self.down(torch.relu(self.up(x.permute(0, 2, 3, 4, 1))))


class Lines(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv1d(3, 16, 3), nn.BatchNorm1d(16), nn.Conv1d(16, 20, 3)
        self.head = nn.Conv1d(20, 4, 1)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.norm(self.a(x))))))


NETWORKS = {"plain": plain, "residual": Residual, "video": Video, "lines": Lines}
CASES = [(name, {}) for name in sorted(CRITERIA)] + [(n, {"edge_weight": 0.4}) for n in ("sirfp", "sirfp_joint")]


@pytest.mark.parametrize(
    "network, last", [(name, last) for name in NETWORKS for last in (False, True) if name != "lines" or not last]
)
def test_every_criterion_prunes_volumes_and_lines(network, last, known_groups):
    shape = (1, 3, 24) if network == "lines" else (1, 3, 6, 8, 8)
    found = None
    for name, options in CASES:
        if last and (options or name not in ("magnitude", "sirfp", "taylor", "sirfp_setwise")):
            continue  # one that asks for weights, for features, for gradients, and for moments
        torch.manual_seed(0)
        model = NETWORKS[network]().eval()
        batches = [torch.randn(2, *shape[1:]) for _ in range(2)]
        if last:
            model = model.to(memory_format=torch.channels_last_3d)
            batches = [batch.contiguous(memory_format=torch.channels_last_3d) for batch in batches]
        found = found or find_groups(model, batches[0])
        known_groups(found, model)
        refit = 2 if name == "sirfp" and not options else 0  # which does not depend on the criterion
        plan = sirfp.prune(model, batches[0], name, 0.6, batches, loss=mean_square, reconstruction=refit, **options)
        assert 0.3 < plan.flops[1] / plan.flops[0] <= 0.6, name
        assert model(batches[0]).isfinite().all()


def test_the_depth_of_a_volume_counts():
    """Channels that differ only in where along the depth they respond are not redundant; in one slice they would be."""
    from sirfp.redundancy import similarity

    volume = torch.zeros(1, 3, 4, 5, 5)
    volume[:, 0, :2], volume[:, 1, 2:], volume[:, 2, :2] = 1, 1, 1
    matrix = similarity(volume, per_position=True)
    assert matrix[0, 1] == 0 and matrix[0, 2] == pytest.approx(2.0)  # half of the positions, each twice as strong
