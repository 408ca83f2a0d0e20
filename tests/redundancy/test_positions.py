"""Redundancies per position of maps of several sizes and of volumes, and the sample of positions of each image."""

import pytest
import torch
from test_redundancy import maps, naive

from sirfp.redundancy import RedundancyAverage, average, similarity, sobel
from sirfp.redundancy.average import edge_strength


@pytest.mark.parametrize("last", [False, True])
def test_each_image_counts_the_positions_of_its_own_map(last):
    levels = [maps(2, 4, size, size + 1) for size in (16, 8, 4, 1)]  # a pyramid under one head
    average = RedundancyAverage(per_position=True)
    for level in levels:
        average.update(level.contiguous(memory_format=torch.channels_last) if last else level)
    expected = sum(naive(level) * level[0, 0].numel() for level in levels) / len(levels)
    torch.testing.assert_close(average.matrix(), expected, atol=1e-5, rtol=1e-4)
    for level in levels:
        torch.testing.assert_close(similarity(level, per_position=True), naive(level) * level[0, 0].numel())
    pooled = RedundancyAverage(per_position=True, pooled=True)  # there the images are the positions
    pooled.update(maps(6, 4, 3, 3))
    torch.testing.assert_close(pooled.matrix(), 6 * naive(maps(6, 4, 3, 3).mean((2, 3)).t()[None]))


@pytest.mark.parametrize("shape", [(2, 5, 3, 6, 7), (1, 3, 1, 5, 4), (2, 4, 2, 3, 4, 5)])
@pytest.mark.parametrize("last", [False, True])
def test_volumes_are_seen_at_every_position(monkeypatch, shape, last):
    features = maps(*shape)
    if last and len(shape) == 5:
        features = features.contiguous(memory_format=torch.channels_last_3d)
    expected = naive(features)
    slices = features.flatten(2, -3).unbind(2)
    edges = torch.stack([edge_strength(part) for part in slices]).mean(0)
    for limit in (sobel.CHUNK_BYTES, 500):
        monkeypatch.setattr(average, "CHUNK_BYTES", limit)
        monkeypatch.setattr(sobel, "CHUNK_BYTES", limit)
        torch.testing.assert_close(similarity(features), expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(edge_strength(features), edges)
    running = RedundancyAverage(edges=True, per_position=True)
    running.update(features)
    torch.testing.assert_close(running.matrix(), expected * features[0, 0].numel(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(running.edge(), edges)


def bordered(images, size, channels=6, inside=0.2, seed=0):
    """Maps that are strongest in their first and last rows and columns, as behind padded convolutions."""
    border = torch.zeros(size, size)
    border[0] = border[-1] = border[:, 0] = border[:, -1] = 1
    generator = torch.Generator().manual_seed(seed)
    return inside * maps(images, channels, size, size, seed=seed) + border * torch.rand(
        1, channels, 1, 1, generator=generator
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("stride", "size"), [(2, 21), (3, 25), (4, 24), (8, 67)])
def test_one_call_of_few_images_sees_borders_as_often_as_they_are_there(monkeypatch, stride, size, last):
    features = bordered(stride, size)
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    whole, sample = similarity(features), similarity(features, stride=stride)
    assert (sample - whole).norm() < 0.25 * whole.norm()
    monkeypatch.setattr(average, "CHUNK_BYTES", 4 * 6 * size * size)  # one image at a time
    torch.testing.assert_close(similarity(features, stride=stride), sample)
    one = torch.stack([similarity(features[:1], stride=stride, turn=turn) for turn in range(stride**2)])
    assert max((part - one.mean(0)).norm() for part in one) > 0.25 * one.mean(0).norm()
    running = RedundancyAverage(ema=1 - 1e-9, stride=stride, edges=True)
    for _ in range(stride**2):
        running.update(features)
        running.step()
    torch.testing.assert_close(running.matrix(), whole, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(running.edge(), edge_strength(features))


def test_a_state_of_version_0_1_0_gets_the_factor_that_it_lacks():
    features, running = maps(2, 3, 4, 5), RedundancyAverage()
    running.update(features)
    running.step()
    old = {name: value for name, value in running.state_dict().items() if name not in ("idle", "per_position")}
    for average_of, factor in ((RedundancyAverage(), 1), (RedundancyAverage(per_position=True), 20)):
        average_of.load_state_dict(old, positions=20)
        torch.testing.assert_close(average_of.matrix(), factor * naive(features))
        again = RedundancyAverage(per_position=average_of.per_position)
        again.load_state_dict(average_of.state_dict(), positions=20)
        torch.testing.assert_close(again.matrix(), average_of.matrix())
