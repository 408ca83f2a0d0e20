"""Parameters that no pass reaches: where the training pass runs, they freeze only themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sirfp.channels import find_groups


class Spare(nn.Module):
    """Holds a parameter of the width of its hidden layers that no pass reads."""

    def __init__(self, spare: nn.Module | nn.Parameter):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.spare = spare
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x).relu()).relu())


class Lossy(Spare):
    """Cannot run in training mode without labels."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if self.training:
            assert labels is not None
        return super().forward(x)


def spares() -> list:
    stage = nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 32, 1))
    return [nn.Conv2d(32, 32, 1), stage, nn.Linear(32, 7), nn.Parameter(torch.zeros(1, 32))]


@pytest.mark.parametrize("spare", spares(), ids=["layer", "stage", "linear", "token"])
def test_what_a_training_pass_does_not_reach_freezes_only_itself(spare):
    found = find_groups(Spare(spare), torch.rand(1, 3, 16, 16))
    assert [(g.name, g.size) for g in found] == [("a", 32), ("b", 32)]


def test_a_layer_that_may_belong_to_a_failing_training_pass_keeps_what_may_feed_it():
    found = find_groups(Lossy(nn.Conv2d(32, 32, 1)), torch.rand(1, 3, 16, 16))
    assert not found.groups
    assert {f.reason for f in found.frozen if f.name in "ab"} == {
        "spare.weight, which the forward pass does not reach, may read it"
    }


@pytest.mark.parametrize(
    "spare",
    [nn.Parameter(torch.zeros(1, 32)), nn.Parameter(torch.zeros(1, 32, 1, 1)), nn.Embedding(9, 32)],
    ids=["token", "position", "embedding"],
)
def test_tokens_and_embeddings_read_no_channels(spare):
    assert len(find_groups(Lossy(spare), torch.rand(1, 3, 16, 16)).groups) == 2
