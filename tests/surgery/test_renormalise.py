"""After a cut, batch norms' outputs have the mean and the variance of the dense network's on the calibration images."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from sirfp.channels import find_groups
from sirfp.moments import take_moments
from sirfp.network.forward import inference
from sirfp.surgery.plan_and_cut import correct_and_cut, cut
from sirfp.surgery.renormalise import ChannelStatistics

WIDTH = 24


def network(norm: type[nn.Module] = nn.BatchNorm2d, depth: int = 6) -> nn.Module:
    """Convolutions with norms, whose channels are partly combinations of one another, with statistics of images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(WIDTH if i else 3, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(WIDTH, 5, 1))
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            module.momentum = None
    with torch.no_grad():
        for _ in range(4):
            model(images(16))
    if norm is not nn.BatchNorm2d:
        for i, module in enumerate(model):
            if isinstance(module, nn.BatchNorm2d):
                model[i] = norm(WIDTH)
                model[i].load_state_dict(module.state_dict(), strict=False)
    return model.eval()


def images(count: int, seed: int = 1) -> torch.Tensor:
    """Smooth random images."""
    noise = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=(12, 12), mode="bilinear")


def half_of(model: nn.Module) -> tuple:
    """The groups of a network, about half of its channels, and moments."""
    found = find_groups(model, images(1))
    keep = np.random.RandomState(0).rand(found.atoms) < 0.5
    with inference(model):
        return found, keep, take_moments(model, found, list(images(64).split(8)))


def both_ways(model: nn.Module, found, keep, moments) -> dict[str, nn.Module]:
    """The network cut and refitted, with and without new statistics."""
    pruned = {}
    for way in ("refit", "renormalised"):
        pruned[way] = copy.deepcopy(model)
        correct_and_cut(pruned[way], found, keep, way, moments)
    return pruned


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_outputs_of_norms_have_the_mean_and_deviation_of_the_dense_network(norm):
    dense = network(norm)
    found, keep, moments = half_of(dense)
    pruned = copy.deepcopy(dense)
    plan = correct_and_cut(pruned, found, keep, "renormalised", moments)
    for i, module in enumerate(dense):
        if isinstance(module, norm):
            kept = next(list(cut.keep) for cut in plan.cuts if (f"{i}.running_mean", 0) in cut.tensors)
            wanted, now = dense[: i + 1](images(64))[:, kept], pruned[: i + 1](images(64))
            scale = wanted.std((0, 2, 3))
            assert torch.allclose(now.mean((0, 2, 3)), wanted.mean((0, 2, 3)), atol=0.05 * float(scale.max()))
            assert torch.allclose(now.std((0, 2, 3)), scale, rtol=0.08)


def test_the_whole_network_decides_whether_new_statistics_help():
    dense, unseen = network(depth=10), images(64, seed=9)
    wanted = dense(unseen)
    found, keep, moments = half_of(dense)
    pruned = both_ways(dense, found, keep, moments)
    error = {way: float((model(unseen) - wanted).square().mean()) for way, model in pruned.items()}
    cut(dense, found, keep, moments=moments)
    assert float((dense(unseen) - wanted).square().mean()) <= 1.02 * min(error.values())


def test_norms_that_nothing_before_changed_are_left_as_they_are():
    dense = network()
    found = find_groups(dense, images(1))
    keep = np.ones(found.atoms, dtype=bool)
    keep[found.spans["9"]] = np.arange(WIDTH) % 2 > 0  # the fourth convolution
    with inference(dense):
        moments = take_moments(dense, found, list(images(32).split(8)))
    pruned = copy.deepcopy(dense)
    correct_and_cut(pruned, found, keep, "renormalised", moments)
    for i in (1, 4, 7):
        assert torch.equal(pruned[i].running_var, dense[i].running_var)
        assert torch.equal(pruned[i].running_mean, dense[i].running_mean)
    assert not torch.equal(pruned[13].running_var, dense[13].running_var)


def test_channels_that_are_exact_copies_need_no_new_statistics():
    dense = network(depth=2)
    with torch.no_grad():
        for tensor in (dense[0].weight, *dense[1].state_dict().values()):
            if tensor.dim():
                tensor[WIDTH // 2 :] = tensor[: WIDTH // 2]
    wanted, before = dense(images(32)), dense[4].running_var.clone()
    found = find_groups(dense, images(1))
    keep = np.ones(found.atoms, dtype=bool)
    keep[found.spans["0"]] = np.arange(WIDTH) < WIDTH // 2
    with inference(dense):
        moments = take_moments(dense, found, list(images(32).split(8)))
    cut(dense, found, keep, moments=moments)
    assert torch.allclose(dense[4].running_var, before, rtol=0.03)  # not 0: of the ridge
    assert float((dense(images(32)) - wanted).std()) < 0.02 * float(wanted.std())


def test_training_mode_and_statistics_of_the_dense_network_stay():
    dense = network().train()
    before = copy.deepcopy(dense.state_dict())
    found = find_groups(dense, images(1))
    with inference(dense):
        moments = take_moments(dense, found, list(images(32).split(8)))
    pruned = copy.deepcopy(dense)
    cut(pruned, found, np.arange(found.atoms) % 2 > 0, moments=moments)
    assert all(module.training for module in pruned.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_of_parts_are_joined_to_those_of_all_values(layout):
    x = (5 + 0.1 * torch.randn(7, 3, 6, 5)).contiguous(memory_format=layout)
    joined = sum([ChannelStatistics.of(part) for part in x[1:].split([1, 5])], ChannelStatistics.of(x[:1]))
    flat = x.double().movedim(1, 0).flatten(1)
    assert joined.count == flat.shape[1]
    torch.testing.assert_close(joined.mean, flat.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(joined.variance, flat.var(1, correction=0), rtol=1e-4, atol=0)
    normalised = joined.normalised(flat.mean(1), flat.std(1, correction=0))
    torch.testing.assert_close(normalised.variance, torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=0)


def test_a_channel_that_is_constant_says_nothing_about_scales():
    x = torch.randn(4, 3, 5, 5)
    x[:, 1] = 2.0
    one = ChannelStatistics.of(x)
    assert float(one.mean[1]) == pytest.approx(2) and float(one.variance[1]) == pytest.approx(0, abs=1e-9)
    dense = network(depth=3)
    with torch.no_grad():
        dense[3].weight[:4] = 0  # channels of the second norm that see zeros only
    for model in both_ways(dense, *half_of(dense)).values():
        assert all(
            bool(t.isfinite().all()) and bool((t > -1e-9).all()) for t in (model[4].running_var, model[7].running_var)
        )
