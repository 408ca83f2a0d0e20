"""Refitting on few images: one image fits nothing, a layer is left as it is where its refit does not help on others."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

import sirfp
from sirfp.channels import find_groups
from sirfp.moments import InputMoments, take_moments
from sirfp.network.forward import inference
from sirfp.prune import cut
from sirfp.surgery import reconstruction
from sirfp.surgery.reconstruction import take_up


def with_statistics(model: nn.Module) -> nn.Module:
    """Sets the norms' statistics from 32 images of noise."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(32, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(timm.create_model("test_resnet", num_classes=10))


@pytest.fixture(scope="module")
def found(resnet):
    """Its groups, which the correction does not change."""
    return find_groups(resnet, torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("images, batch", [(1, 1), (2, 1), (2, 2), (8, 4)])
def test_no_number_of_images_makes_it_explode(resnet, found, images, batch, known_groups):
    """One image and a Linear after pooling are one row: its covariance used to be rounding noise."""
    x = torch.randn(8, 3, 64, 64)
    known_groups(found, resnet)
    errors = []
    for count in (0, images):
        pruned = copy.deepcopy(resnet)
        calibration = torch.randn(images, 3, 64, 64).split(batch)
        sirfp.prune(
            pruned, x[:1], "magnitude", 0.6, calibration=list(calibration), reconstruction=count, partitions="*"
        )
        with torch.no_grad():
            errors.append(float((pruned(x) - resnet(x)).square().mean()))
    assert errors[1] <= errors[0] * (1.001 if images == 1 else 0.5)


def moments_of(rows: torch.Tensor, seen: torch.Tensor) -> InputMoments:
    moments = InputMoments(torch.Size([4, rows.shape[1]]))
    for half, part in zip(moments.halves, (rows, seen), strict=True):
        half.add(part)
    return moments


def test_a_fit_to_noise_is_not_taken():
    """Independent channels cannot be predicted; the mean of few rows tells little about a small one."""
    torch.manual_seed(0)
    weight, gone = torch.randn(4, 40), np.arange(40) % 2 > 0
    rows = torch.randn(24, 40)
    correction, new, shift = take_up(weight, moments_of(rows[:12], rows[12:]), gone, np.zeros(40))
    assert correction.kind == "none" and torch.equal(new, weight) and not shift.any()
    correction, new, shift = take_up(weight, moments_of(rows[:12] + 3, rows[12:] + 3), gone, np.zeros(40))
    assert correction.kind == "constants" and torch.equal(new, weight)
    torch.testing.assert_close(shift, weight[:, gone] @ (rows.mean(0) + 3)[gone])


def test_what_channels_emit_is_taken_where_it_is_better_than_the_calibration():
    torch.manual_seed(0)
    weight, gone = torch.randn(4, 40), np.arange(40) % 2 > 0
    rows = torch.randn(4, 40) + 1
    emitted = weight[:, gone].sum(1)
    correction, _, shift = take_up(weight, moments_of(rows[:2], rows[2:]), gone, np.zeros(40), emitted)
    assert correction.kind == "emitted" and torch.equal(shift, emitted)


def test_the_error_grows_with_noise_and_the_fit_shrinks_with_errors_upstream():
    torch.manual_seed(0)
    weight, gone = torch.randn(4, 40), np.arange(40) % 2 > 0
    mix = torch.randn(8, 40)

    def chosen(rows: int, upstream: float):
        parts = [torch.randn(rows, 8) @ mix + 0.5 * torch.randn(rows, 40) for _ in range(2)]
        return take_up(weight, moments_of(*parts), gone, np.full(40, upstream))

    many, few = chosen(4000, 0.0), chosen(6, 0.0)
    assert many[0].kind == few[0].kind == "refit"
    assert many[0].ridge <= few[0].ridge and many[0].error < few[0].error
    noisy = chosen(4000, 0.5)
    assert float((noisy[1] - weight).norm()) < 0.85 * float((many[1] - weight).norm())


def test_one_half_alone_fits_nothing():
    moments = InputMoments(torch.Size([4, 6]))
    moments.halves[0].add(torch.randn(100, 6))
    assert take_up(torch.randn(4, 6), moments, np.arange(6) > 2, np.zeros(6)) is None


def test_small_norms_over_removed_channels_leave_their_readers_alone():
    """With 8 of 16 channels left, a norm over them makes other features than those the fit would be for."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.GroupNorm(1, 16), nn.ReLU(), nn.Conv2d(16, 8, 1)]
    model = nn.Sequential(*layers).eval()
    images = torch.randn(4, 3, 8, 8)
    found = find_groups(model, images[:1])
    with inference(model):
        moments = take_moments(model, found, [images, images + 1])
    before = model[3].weight.clone()
    cut(model, found, np.arange(found.atoms) % 2 > 0, moments=moments)
    assert torch.equal(model[3].weight, before[:, 1::2])


class Deaf(nn.Module):
    """A network whose refit harms: what is left after the cut is normalised over positions, in code."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        return self.last(self.second(torch.relu(self.first(x))))


def test_the_whole_network_decides(monkeypatch):
    """If every way is worse than none on the images that it has not seen, none is taken."""
    from sirfp.surgery import plan_and_cut

    torch.manual_seed(0)
    model, images = Deaf().eval(), torch.randn(4, 3, 6, 6)
    found = find_groups(model, images[:1])
    with inference(model):
        moments = take_moments(model, found, [images, images + 1])
    real = plan_and_cut.compensate

    def harmful(model, *args):
        real(model, *args)
        with torch.no_grad():
            model.last.bias += 100
        return ()

    monkeypatch.setattr(plan_and_cut, "compensate", harmful)
    before = model.last.bias.clone()
    cut(model, found, np.arange(found.atoms) % 2 > 0, moments=moments)
    assert torch.equal(model.last.bias, before)


@pytest.mark.parametrize("upstream", [0.0, 0.3])
def test_errors_that_were_judged_before_give_the_same_corrections(upstream, monkeypatch):
    torch.manual_seed(0)
    weight, gone, noise = torch.randn(4, 40), np.arange(40) % 3 == 0, np.full(40, upstream)
    rows = torch.randn(90, 40) @ torch.randn(40, 40)
    moments, judged, judge, calls = moments_of(rows[:45], rows[45:]), [], reconstruction._judge, []
    monkeypatch.setattr(reconstruction, "_judge", lambda *args: calls.append(1) or judge(*args))
    for half, tolerance in ((True, 2.5), (True, 1.0), (False, 2.5), (False, 1.0)):
        wanted = take_up(weight, moments, gone, noise, None, half, tolerance)
        got = take_up(weight, moments, gone, noise, None, half, tolerance, judged)
        assert got[0] == wanted[0] and torch.equal(got[1], wanted[1]) and torch.equal(got[2], wanted[2])
    assert len(calls) == 4 + 1 and {c.kind for c in judged} == {"none", "constants", "refit"}


def test_a_cut_judges_each_layer_once(resnet, found, monkeypatch):
    model, x = copy.deepcopy(resnet), torch.randn(8, 3, 64, 64)
    judge, judged = reconstruction._judge, []
    with inference(model):
        moments = take_moments(model, found, [x[:4], x[4:]])
    monkeypatch.setattr(
        reconstruction, "_judge", lambda reader, e: judged.append(reader.weight.shape) or judge(reader, e)
    )
    read = [e.weight for e in found.emissions if e.weight in moments]
    cut(model, found, np.arange(found.atoms) % 4 > 0, moments=moments)
    assert 1 < len(judged) <= len(set(read))
