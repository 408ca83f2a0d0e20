"""A session decides as `sirfp.prune` does."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import drawn
from small_networks import mean_square
from torch import nn

import sirfp
from sirfp.budget import decision
from sirfp.budget.evidence import Evidence
from sirfp.budget.limits import Limits
from sirfp.budget.target import TARGETS
from sirfp.network.held_out import count_images
from sirfp.session import PruningSession


class Plain(nn.Module):
    """A backbone and a head without norms, so that training and evaluation mode give the same outputs."""

    def __init__(self):
        super().__init__()
        sizes = [3, 24, 20, 16]
        layers = [[nn.Conv2d(a, b, 3, padding=1), nn.ReLU()] for a, b in zip(sizes, sizes[1:], strict=False)]
        self.backbone = nn.Sequential(*[module for pair in layers for module in pair])
        self.head = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 1))

    def forward(self, x):
        return self.head(self.backbone(x))


def in_a_run(model, batches, target, limits, criterion, options):
    """The plan of a session with one pruning, which sees the batches as a training run shows them."""
    session = PruningSession(model, batches[0], criterion=criterion, period=1, limits=limits, options=options)
    model.train()
    for batch in batches:
        session.attach()
        model.zero_grad(set_to_none=True)
        mean_square(model, batch).backward()
        session.attach().step()
    return session.prune(target)


@drawn(24)
@given(
    seed=st.integers(0, 5),
    criterion=st.sampled_from(["sirfp_joint", "sirfp", "taylor", "magnitude"]),
    quantity=st.sampled_from(["flops", "params"]),
    share=st.floats(0.3, 0.9),
    round_to=st.sampled_from([1, 2, 4]),
    min_keep=st.sampled_from([0.0, 0.02, 0.3]),
    partitions=st.sampled_from([("backbone",), (), "*", Limits.partitions]),
    ignore=st.sampled_from([(), ("head.0",)]),
    local=st.booleans(),
)
def test_one_step_of_a_session_makes_the_plan_of_prune(
    seed, criterion, quantity, share, round_to, min_keep, partitions, ignore, local
):
    torch.manual_seed(seed)
    model, batches = Plain(), [torch.randn(2, 3, 12, 12) for _ in range(2)]
    options = {"search": "local"} if local and criterion in ("sirfp_joint", "sirfp") else {}
    limits = {"round_to": round_to, "min_keep": min_keep, "partitions": partitions, "ignore": ignore}
    other = copy.deepcopy(model)
    try:
        plan = sirfp.prune(
            model, batches[0], criterion, calibration=batches, loss=mean_square, reconstruction=0,
            **{f"keep_{quantity}": share}, **limits, **options,
        )  # fmt: skip
    except sirfp.InputError as error:
        assert "cannot be reached" in str(error)
        with pytest.raises(sirfp.InputError, match="cannot be reached"):
            in_a_run(other, batches, TARGETS[quantity](share), Limits(**limits), criterion, options)
        return
    assert in_a_run(other, batches, TARGETS[quantity](share), Limits(**limits), criterion, options) == plan
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_both_ask_one_function(monkeypatch):
    """What `decide` says is what is cut, in a session as in the function."""
    import sys

    calls = []

    def decide(*args, **kwargs):
        calls.append(decision.decide(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(sys.modules["sirfp.session"], "decide", decide)
    batches = [torch.randn(2, 3, 12, 12)]
    plans = [
        sirfp.prune(Plain(), batches[0], "magnitude", 0.5),
        in_a_run(Plain(), batches, TARGETS["flops"](0.5), Limits(), "magnitude", {}),
    ]
    assert len(calls) == 2
    for choice, plan in zip(calls, plans, strict=True):
        assert int(choice.keep.sum()) == sum(len(kept) for kept in plan.kept.values())
        assert choice.budget == plan.budget == ("flops", 0.5)


def test_only_the_last_cut_is_refitted_on_images_of_loss_curves(monkeypatch):
    """Otherwise the curves of later cuts would be measured on images that an earlier refit has fitted."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    images, looked = torch.randn(32, 3, 12, 12), []

    def moments(self, *args, **options):
        taken = original(self, *args, **options)
        looked.append(sum(map(count_images, taken.batches)))
        return taken

    original = Evidence.moments
    monkeypatch.setattr(Evidence, "moments", moments)
    sirfp.prune(model.eval(), images[:1], keep_flops=0.5, calibration=list(images.split(8)), widths="curves", steps=2)
    assert looked == [24, 24, 32]
