"""Set-wise redundancy as a criterion: orders by the layers that read a group, and groups without such layers."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

import sirfp
from sirfp.budget.evidence import Evidence
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion, setwise
from sirfp.criteria.setwise import _with_channels
from sirfp.errors import InputError
from sirfp.moments import InputMoments
from sirfp.network.divergence import divergence_for
from sirfp.network.forward import inference
from sirfp.redundancy.elimination import eliminate


class Copies(nn.Module):
    """Eight channels of which the last four are mixtures of the first four, and a classifier that reads all."""

    def __init__(self):
        super().__init__()
        self.make, self.norm, self.read = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)
        mixed = torch.tensor([[0.6, 0.8, 0, 0], [0, 0.6, 0.8, 0], [0, 0, 0.6, 0.8], [0.8, 0, 0, 0.6]])
        with torch.no_grad():
            self.make.weight.copy_(torch.cat([torch.eye(4), mixed])[:, :, None, None])

    def forward(self, x):
        return self.read(self.norm(self.make(x))).mean((2, 3))


def learned(model: nn.Module, batches: list, **options):
    found = find_groups(model, batches[0][:1])
    criterion = build_criterion("sirfp_setwise", model, found.groups, **options)
    evidence = Evidence(batches, [], divergence_for(model))
    evidence.learn(model, found, criterion, evidence.moments(model, found))
    return found, criterion


def test_channels_that_the_others_make_up_cost_nothing():
    torch.manual_seed(0)
    model, batches = Copies().eval(), [torch.randn(16, 4, 6, 6) for _ in range(4)]
    images = torch.cat(batches)
    for gradients in (True, False):
        found, criterion = learned(model, batches, ridge=1e-6, output_gradients=gradients)
        [group] = found
        scores = criterion.scores()[group.name][criterion.orders()[group.name]]
        assert scores[3] < 1e-2 * scores[4]  # four of eight channels are enough
        keep = np.ones(8, dtype=bool)
        keep[criterion.orders()[group.name][:4].numpy()] = False
        pruned = sirfp.prune(model, images[:1], "sirfp_setwise", 0.6, batches, ridge=1e-6)
        assert len(pruned.kept[group.name]) == 4
        with inference(model):
            y = model(images)
        torch.manual_seed(0)
        model = Copies().eval()
        with inference(model):
            assert (model(images) - y).abs().max() < 0.05 * y.std()


def test_scores_rank_as_the_channels_were_removed_in_a_network_of_many_readers():
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=7).eval()
    found, criterion = learned(model, [torch.randn(4, 3, 48, 48) for _ in range(2)])
    orders, scores = criterion.orders(), criterion.scores()
    assert set(orders) == set(scores) == {group.name for group in found}
    for group in found:
        order, score = orders[group.name], scores[group.name]
        assert sorted(order.tolist()) == list(range(group.size)) and score.isfinite().all() and (score >= 0).all()
        assert (score[order].diff() >= 0).all()


def test_groups_that_no_plain_layer_reads_are_scored_by_their_gradients():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2)

        def forward(self, x):
            return self.b(self.a(x).relu()).mean((2, 3))

    torch.manual_seed(0)
    model = Grouped().eval()
    for gradients in (True, False):
        found, criterion = learned(model, [torch.randn(4, 3, 8, 8)], output_gradients=gradients)
        for name, score in criterion.scores().items():
            assert len(score) == found[name].size and score.isfinite().all() and score.std() > 0


def test_atoms_of_different_numbers_of_channels():
    atoms = np.array([5, 3, 3, -1, 4, 4, 4, 9])
    inverse, effect = torch.eye(8, dtype=torch.float64), torch.ones(8, 8, dtype=torch.float64)
    wider, more, channels = _with_channels(inverse, effect, atoms, slice(3, 6))
    assert channels.tolist() == [[1, 2, 8], [4, 5, 6], [0, 9, 10]]
    assert torch.equal(wider, torch.eye(11, dtype=torch.float64))
    assert more[:8, :8].eq(1).all() and more[8:].eq(0).all() and more[:, 8:].eq(0).all()


class Heads(nn.Module):
    """A layer whose output three layers read, two of them unchanged, and a fourth after a pooling."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.make = nn.Conv2d(4, 12, 1)
        self.one, self.three, self.other = nn.Conv2d(12, 5, 1), nn.Conv2d(12, 5, 3, padding=1), nn.Conv2d(12, 5, 1)
        self.pooled = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = self.make(x).relu()
        return self.one(x) + self.three(x) + self.other(x.square()) + self.pooled(x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("gradients", [True, False])
def test_layers_of_one_input_share_a_reader_and_the_order_is_the_same(gradients, monkeypatch):
    counts = []
    monkeypatch.setattr(
        setwise, "eliminate", lambda readers, size: counts.append(len(readers)) or eliminate(readers, size)
    )
    batches = [torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    _, joined = learned(Heads().eval(), batches, output_gradients=gradients)
    monkeypatch.setattr(InputMoments, "same_channels", lambda self, other: False)
    _, apart = learned(Heads().eval(), batches, output_gradients=gradients)
    assert counts == [3, 4]
    for name, scores in joined.scores().items():
        torch.testing.assert_close(scores, apart.scores()[name], rtol=1e-6, atol=0)
        assert joined.orders()[name].tolist() == apart.orders()[name].tolist()


@pytest.mark.parametrize("columns", [2, 512])
@pytest.mark.parametrize("kernel", [(), (3, 2)])
def test_effect_is_the_product_of_weights_and_gradients(columns, kernel, monkeypatch):
    monkeypatch.setattr(setwise, "COLUMNS", columns)
    weight, g = torch.randn(4, 7, *kernel), torch.randn(9, 4, dtype=torch.float64)
    g = g.T @ g
    taps = weight.double().reshape(4, 7, -1)
    wanted = torch.einsum("oit,op,pjt->ij", taps, g, taps)
    torch.testing.assert_close(setwise._effect(weight, g), wanted)
    torch.testing.assert_close(setwise._effect(weight, None), torch.einsum("oit,ojt->ij", taps, taps))


def test_no_batches_is_said():
    model = Copies().eval()
    with pytest.raises(InputError, match="'sirfp_setwise' looks at images: give calibration batches"):
        sirfp.prune(model, torch.randn(1, 4, 6, 6), "sirfp_setwise", 0.6)


class Overflow(nn.Module):
    """Outputs that are infinite, from finite weights."""

    def forward(self, x):
        return x.abs() * 3e38 * 3e38


def test_outputs_that_are_not_finite_leave_the_inputs_to_decide(caplog):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model = nn.Sequential(*layers, Overflow()).eval()
    batches = [torch.randn(2, 3, 12, 12) for _ in range(3)]
    plan = sirfp.prune(model, batches[0], keep_flops=0.5, calibration=batches, widths="ranking")
    assert plan.flops[1] <= 0.5 * plan.flops[0] and "no batch has finite outputs" in caplog.text
    images = [batch * torch.nan for batch in batches]
    with pytest.raises(InputError, match="finite"):
        sirfp.prune(model, batches[0], keep_flops=0.3, calibration=images, widths="ranking")


def test_local_search_finds_other_sets_of_the_same_size():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5, zero_init_last=False).eval()
    batches = [torch.randn(8, 3, 64, 64)]
    found, criterion = learned(model, batches, search="local")
    _, greedy = learned(model, batches)
    moved = 0
    for group in found:
        kept = criterion.orders()[group.name][group.size // 2 :].sort().values
        assert torch.equal(greedy.refine(group, kept), kept)
        better = criterion.refine(group, kept)
        assert len(better) == len(kept) == len(set(better.tolist())) and better.tolist() == sorted(better.tolist())
        moved += not torch.equal(better, kept)
    assert moved
