"""The prunability tables judge equality as `sirfp verify` does."""

import pytest
import torch
from scripts import loaded
from small_networks import TwoOutputs
from torch import nn


@pytest.fixture(scope="module")
def prunability():
    with loaded("benchmarks/prunability.py") as module:
        yield module


def halved(module, network, side):
    torch.manual_seed(0)
    return module.prune_to_half(network().eval(), torch.randn(2, 3, side, side), lambda pruned, plan: None)


def test_a_difference_that_rounding_explains_counts_as_equal_and_is_shown(prunability):
    row = halved(prunability, TwoOutputs, 12)
    assert row["equal"] and row["exact_equal"] and 1e-4 < row["difference"] <= 2 * row["rounding"]
    shown = f"{row['difference']:.0e} ({row['rounding']:.0e} by rounding)"
    assert prunability.difference_cell(row) == shown == prunability.equal_cell(row, "norms")


def test_rounding_errors_of_one_output_excuse_no_wrong_cut_of_another(prunability, monkeypatch):
    right = prunability.cut

    def wrong(model, *args, **kwargs):
        plan = right(model, *args, **kwargs)
        with torch.no_grad():
            model.plain[2].weight.mul_(1.00015)
        return plan

    monkeypatch.setattr(prunability, "cut", wrong)
    row = halved(prunability, TwoOutputs, 12)
    assert 1e-4 < row["difference"] < 2e-4 and row["rounding"] < 1e-5
    assert not row["equal"] and not row["exact_equal"]


def test_groups_that_cannot_be_equal_are_left_whole_by_a_second_plan(prunability):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 5, 3)

        def forward(self, x):
            x = self.second(self.first(x).relu())
            return self.last(x / x.std(1, keepdim=True))

    row = halved(prunability, Normed, 12)
    assert row["inexact"] and row["equal"] and row["exact_equal"]
    assert prunability.equal_cell(row, "statistics") == (
        f"{row['exact_difference']:.0e}, {row['difference']:.0e} with statistics"
    )
