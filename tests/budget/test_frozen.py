"""A model in which nothing can be cut: one line with the most frequent reasons, with every criterion."""

import pytest
import torch
from torch import nn

import sirfp
from sirfp.budget.frozen import why_frozen
from sirfp.budget.target import TARGETS
from sirfp.channels import find_groups
from sirfp.criteria import CRITERIA
from sirfp.errors import InputError
from sirfp.structure.groups import Frozen

X = torch.randn(2, 3, 8, 8)


class Chosen(nn.Module):
    """A list of indices fixes the width of the only layer that could be cut."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)[:, [0, 1, 2, 3, 4, 5, 6, 7]]))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_says_why(criterion):
    options = {"calibration": [X], "loss": lambda model, batch: model(batch).mean()}
    with pytest.raises(InputError, match=r"nothing in the model can be cut: .*index.*8 channels, e.g. of 'a'") as error:
        sirfp.prune(Chosen(), X, criterion, keep_flops=0.5, **options)
    assert "\n" not in str(error.value)
    plan = sirfp.prune(Chosen(), X, criterion, keep_flops=1.0, **options)  # a budget of everything is met
    assert plan.flops[0] == plan.flops[1]


@pytest.mark.parametrize("kind", TARGETS)
def test_every_budget_says_why(kind):
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 2, 3))
    words = r"IGNORE names 0, whose outputs are kept \(8 channels, .*'0'\); IGNORE names 1, .* \(6 channels"
    with pytest.raises(InputError, match=words):
        sirfp.prune(plain, X, "magnitude", ignore=["0", "1"], **{f"keep_{kind}": 0.5})
    model, found = Chosen(), find_groups(Chosen(), X)
    with pytest.raises(InputError, match="index"):  # asked at the start of a training run
        TARGETS[kind](0.5).check_reach(model, X, found)


def test_the_most_frequent_reasons_come_first():
    frozen = [Frozen("a", 8, "rare"), Frozen("b", 64, "it is the model's output"), Frozen("c", 20, "often"),
              Frozen("d", 4, "often"), Frozen("e", 2, "seldom"), Frozen("f", 1, "once")]  # fmt: skip
    text = why_frozen(frozen)
    assert "often (24 channels, e.g. of 'c'); rare (8 channels, e.g. of 'a'); seldom (2 channels" in text
    assert "2 more reasons" in text
    with pytest.raises(InputError, match="reach no layer that makes channels"):
        sirfp.prune(nn.Sequential(nn.ReLU()), X, "magnitude", keep_flops=0.5)
