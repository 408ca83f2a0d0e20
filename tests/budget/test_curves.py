"""Loss curves: what they measure, on which images, and mistakes in what they are given."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from torch import nn

import sirfp
from sirfp.budget.curves import CurveMeter, measure_curves
from sirfp.budget.evidence import Evidence
from sirfp.budget.limits import Limits
from sirfp.channels import find_groups
from sirfp.moments import take_moments
from sirfp.network.divergence import divergence_for
from sirfp.network.forward import inference
from sirfp.network.held_out import count_images, hold_out, regrouped, thinned
from sirfp.surgery.plan_and_cut import cut_copy


@pytest.fixture(scope="module")
def network():
    """A small residual network with statistics of its own images, its groups, moments, and images for curves."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5)
    images = [torch.randn(8, 3, 48, 48) for _ in range(4)]
    with torch.no_grad():
        for batch in images:
            model.train()(batch)
    model.eval()
    found = find_groups(model, images[0][:1])
    with inference(model):
        moments = take_moments(model, found, images[:3])
    return model, found, moments, images[3:]


def orders(found) -> dict[str, torch.Tensor]:
    return {group.name: torch.arange(group.size) for group in found}


def meter(model, found, moments, held, **how) -> CurveMeter:
    return CurveMeter(model, found, orders(found), moments, held, divergence_for(model), **how)


class Labelled(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


def test_a_curve_is_the_divergence_of_a_copy_in_which_one_group_is_cut(network):
    model, found, moments, held = network
    before = copy.deepcopy(model.state_dict())
    curves = measure_curves(meter(model, found, moments, held), levels=(0.5,))
    assert set(curves) == {group.name for group in found}
    with inference(model):
        dense = model(held[0]).log_softmax(1)
    for group in found:
        curve = curves[group.name]
        assert curve.widths[-1] == curve.size == group.size and curve.losses[-1] == 0
        for width, loss in zip(curve.widths[:-1], curve.losses[:-1], strict=True):
            keep = np.ones(found.atoms, dtype=bool)
            keep[found.spans[group.name].start :][: group.size - width] = False
            pruned = cut_copy(model, found, keep, moments)
            with inference(pruned):
                other = pruned(held[0]).log_softmax(1)
            wanted = float((dense.exp() * (dense - other)).sum(1).mean())
            assert loss == pytest.approx(wanted, rel=1e-3, abs=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_widths_of_a_curve_are_allowed_ones(network, caplog):
    model, found, moments, held = network
    limits = Limits(round_to=8, min_keep=0.5)
    with caplog.at_level("INFO"):
        curves = measure_curves(meter(model, found, moments, held), limits, levels=(0.7, 0.3))
    assert "Measuring the loss" in caplog.messages[0] and "Measured" in caplog.messages[-1]  # the log of a run
    assert all(width % 8 == 0 and width >= curve.size / 2 for curve in curves.values() for width in curve.widths)


def test_a_second_cut_is_measured_from_the_dense_network(network):
    model, found, moments, held = network
    evidence = Evidence(held, held, divergence_for(model))
    with inference(model):
        evidence.dense = [evidence.divergence.outputs(model, batch) for batch in held]
    keep = np.ones(found.atoms, dtype=bool)
    keep[found.spans[found.groups[-1].name].start :][: found.groups[-1].size // 2] = False
    pruned = cut_copy(model, found, keep, moments)
    again = find_groups(pruned, held[0][:1])
    far = measure_curves(meter(pruned, again, None, held, dense=evidence.dense), levels=(0.2,))
    near = measure_curves(meter(pruned, again, None, held), levels=(0.2,))
    assert any(abs(far[name].losses[0] - near[name].losses[0]) > 0.01 * near[name].losses[0] for name in far)


def test_images_are_held_out_of_what_is_fitted():
    for sizes in ([8] * 8, [32], [5, 5], [1, 1, 1, 1], [1, 3], [64, 64, 64]):
        batches = [torch.arange(sum(sizes[:i]), sum(sizes[: i + 1]))[:, None] for i in range(len(sizes))]
        fit, held = hold_out(batches, 16)
        parts = torch.cat([*fit, *held])[:, 0].sort().values
        assert parts.tolist() == list(range(sum(sizes)))
        assert held and fit and sum(map(count_images, held)) <= 16
    assert hold_out([torch.zeros(1, 3)], 16)[1] == []


def test_batches_are_thinned_at_even_distances():
    batches = [torch.full((4, 1), number) for number in range(10)]
    assert [int(batch[0]) for batch in thinned(batches, 12)] == [1, 5, 8]
    assert [int(batch[0]) for batch in thinned(batches, 1)] == [5]
    assert len(thinned(batches, 40)) == len(thinned(batches, 99)) == 10 and thinned([], 3) == []


def test_batches_of_one_shape_are_joined_and_divided():
    batches = [torch.rand(n, 3, side, side) for n, side in ((2, 4), (2, 4), (2, 8), (15, 8), (1, 4))]
    assert [len(batch) for batch in regrouped(batches, 16)] == [4, 16, 1, 1]
    assert [len(batch) for batch in regrouped(batches, 16, pixels=5 * 64)] == [4, 5, 5, 5, 2, 1]
    assert [len(batch) for batch in regrouped(batches, 16, pixels=1)] == [1] * 22
    assert torch.equal(torch.cat(regrouped(batches[2:4], 3)), torch.cat(batches[2:4]))
    items = [[{"image": torch.zeros(3, side, side), "name": n}] for n, side in enumerate((4, 4, 8, 8, 8))]
    divided = regrouped(items, pixels=2 * 64)
    assert [[item["name"] for item in batch] for batch in divided] == [[0, 1], [2, 3], [4]]
    other = [(torch.zeros(5, 3, 4, 4), torch.zeros(5)), [{"image": torch.zeros(3, n, 4)} for n in (4, 5)]]
    assert all(a is b for a, b in zip(regrouped(other, 1), other, strict=True))
    assert [batch.dtype for batch in regrouped([torch.zeros(1, 2), torch.zeros(1, 2).half()])] == [
        torch.float32,
        torch.float16,
    ]


def test_named_tuples_are_divided_and_dictionaries_of_other_images_are_left_alone():
    batch = Labelled(torch.arange(8)[:, None], torch.arange(8))
    [fit], [held] = hold_out([batch], 2)
    assert isinstance(fit, Labelled) and isinstance(held, Labelled)
    assert len(fit.images) == 6 and torch.equal(held.images[:, 0], held.labels) and len(held.labels) == 2
    other = [[{"image": "a.png"}, {"image": "b.png"}], [{"pixels": torch.zeros(3, 4, 4)}]]
    assert regrouped(other, 1) == other


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"calibration": [torch.randn(1, 3, 16, 16)], "widths": "curves"}, "at least two calibration images, not 1"),
        ({"calibration": [torch.randn(4, 3, 16, 16)], "widths": "curvs"}, "must be one of curves, ranking.*you mean"),
        ({"calibration": [torch.randn(16, 3, 16, 16)], "steps": 0}, "steps must be a whole number of at least 1"),
        ({"calibration": [torch.full((16, 3, 16, 16), torch.nan)], "widths": "curves"}, "finite|nan"),
        ({"calibration": [torch.randn(16, 3, 16, 16)], "divergence": lambda a, b: a.sum() * 0 + 1}, "not 0"),
        ({"calibration": [torch.randn(16, 3, 16, 16)], "divergence": lambda a, b: a.sum() / 0}, "inf|nan"),
    ],
)
def test_mistakes_end_in_one_line(given, says):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    model = nn.Sequential(*layers)
    with pytest.raises(sirfp.InputError, match=says) as error:
        sirfp.prune(model.eval(), torch.randn(1, 3, 16, 16), keep_flops=0.5, **given)
    assert "\n" not in str(error.value)


def test_a_divergence_of_one_s_own_decides_widths():
    """Only the first output counts, so the layers that the second reads alone are cut most."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)) for _ in range(2))

        def forward(self, x):
            return self.a(x), self.b(x)

    torch.manual_seed(0)
    images = [torch.randn(8, 3, 12, 12) for _ in range(3)]
    plan = sirfp.prune(
        Two().eval(), images[0][:1], keep_flops=0.6, calibration=images, widths="curves", min_keep=0.1,
        divergence=lambda dense, other: (dense[0] - other[0]).square().mean(),
    )  # fmt: skip
    assert len(plan.kept["a.0"]) > 13 > 6 > len(plan.kept["b.0"])
