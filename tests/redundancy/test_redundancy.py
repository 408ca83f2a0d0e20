"""Similarities of channels and their average equal a naive loop for every layout, chunk size and process count."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from sirfp.redundancy import RedundancyAverage, average, edge_weights, similarity, sobel
from sirfp.redundancy.average import edge_strength

shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(features, order=1):
    """Image for image, pair for pair."""
    images, channels = features.shape[:2]
    result = torch.zeros(channels, channels, dtype=torch.float64)
    for image in features.double().reshape(images, channels, -1):
        scaled = [channel / (channel.norm(order) + 1e-5) for channel in image]
        for i in range(channels):
            for j in range(channels):
                result[i, j] += (scaled[i] * scaled[j]).sum() / images
    return result.float()


@given(shapes, st.sampled_from(["l1", "l2"]), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_similarity_is_the_naive_loop_in_either_memory_format(shape, normalize, last, seed):
    features = maps(*shape, seed=seed)
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    expected = naive(features, 1 if normalize == "l1" else 2)
    torch.testing.assert_close(similarity(features, normalize), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("limit", [1, 200, 1000, 5000])
@pytest.mark.parametrize("normalize", ["l1", "l2"])
@pytest.mark.parametrize("last", [False, True])
def test_chunks_change_nothing(monkeypatch, limit, normalize, last):
    features = maps(3, 5, 7, 6)
    if last:
        features = features.contiguous(memory_format=torch.channels_last)
    whole, edges = similarity(features, normalize, stride=1), edge_strength(features)
    monkeypatch.setattr(average, "CHUNK_BYTES", limit)
    monkeypatch.setattr(sobel, "CHUNK_BYTES", limit)
    torch.testing.assert_close(similarity(features, normalize), whole)
    torch.testing.assert_close(edge_strength(features), edges)
    monkeypatch.undo()
    monkeypatch.setattr(average, "CACHED_BYTES", limit)
    torch.testing.assert_close(similarity(features, normalize), whole)


def test_features_that_are_views_are_read_where_they_lie():
    features = maps(2, 12, 9, 10)
    for view in (features[:, 2:9], features[:, :, 1:7, 2:], features.transpose(2, 3), features[:, ::3]):
        torch.testing.assert_close(similarity(view), naive(view))


def test_many_channels_have_a_symmetric_matrix():
    features = maps(2, 300, 4, 5)
    matrix = similarity(features)
    assert torch.equal(matrix, matrix.t())
    scaled = features.flatten(2) / (features.flatten(2).abs().sum(2, keepdim=True) + 1e-5)
    torch.testing.assert_close(matrix, (scaled @ scaled.mT).mean(0), atol=1e-6, rtol=1e-4)


def test_lines_and_single_values_are_maps():
    features = maps(2, 5, 6)
    torch.testing.assert_close(similarity(features), naive(features))
    torch.testing.assert_close(similarity(features[:, :, 0]), naive(features[:, :, :1]))


def test_low_precision_is_summed_in_float32_under_autocast_too():
    features = maps(2, 6, 20, 20).bfloat16()
    expected = naive(features.float())
    with torch.autocast("cpu", torch.bfloat16):
        for x in (features, features.contiguous(memory_format=torch.channels_last)):
            assert similarity(x).dtype == torch.float32
            torch.testing.assert_close(similarity(x), expected, atol=1e-7, rtol=1e-4)


def test_pooled_features_of_a_batch_are_one_map():
    features = maps(6, 4, 3, 3)
    torch.testing.assert_close(similarity(features, pooled=True), naive(features.mean((2, 3)).t()[None]))


@pytest.mark.parametrize("normalize", ["l1", "l2"])
def test_the_turns_of_a_stride_add_up_to_the_whole_map(normalize):
    features = maps(2, 4, 30, 17)
    average = RedundancyAverage(ema=1 - 1e-9, normalize=normalize, stride=3)
    for _ in range(9):
        average.update(features[:, :, :, :15])
        average.step()
    torch.testing.assert_close(average.matrix(), similarity(features[:, :, :, :15], normalize))
    small = maps(2, 4, 5, 3)
    torch.testing.assert_close(similarity(small, stride=9), similarity(small))


def test_edges_are_zero_on_constant_and_tiny_maps_and_rise_with_contrast():
    assert edge_strength(torch.ones(2, 3, 8, 8)).tolist() == [0, 0, 0]
    for size in ((1, 1), (2, 9), (3, 3)):
        assert edge_strength(maps(1, 1, *size)).tolist() == [0]
    step = torch.zeros(1, 2, 8, 8)
    step[:, 0, :, 4:], step[:, 1, :, 4:] = 1, 2
    one, two = edge_strength(step).tolist()
    assert two == pytest.approx(2 * one) and one > 0


def test_edges_are_the_deviation_of_the_sobel_magnitude():
    x = maps(2, 3, 9, 11)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([kernel, kernel.t()])[:, None]
    gradient = torch.nn.functional.conv2d(x.flatten(0, 1)[:, None], kernels).norm(dim=1)
    expected = gradient.flatten(1).std(1, correction=0).view(2, 3).mean(0)
    torch.testing.assert_close(edge_strength(x), expected)


def test_edge_weights_are_minus_magnitudes():
    matrix = torch.tensor([[2.0, -1.0], [-1.0, 3.0]])
    assert edge_weights(matrix).tolist() == [[0, -1], [-1, 0]]
    assert edge_weights(matrix, self_similarity=True).tolist() == [[-2, -1], [-1, -3]]
    assert matrix.tolist() == [[2, -1], [-1, 3]]


@pytest.mark.parametrize("ema", [0.0, 0.01, 0.5, 0.99])
def test_the_average_is_the_moving_average_with_its_bias_corrected(ema):
    average, matrix, edge, weight = RedundancyAverage(ema, edges=True), torch.zeros(3, 3), torch.zeros(3), 0.0
    for t in range(12):
        features = maps(2, 3, 5, 4, seed=t)
        average.update(features)
        average.step()
        matrix = ema * matrix + (1 - ema) * naive(features)
        edge = ema * edge + (1 - ema) * edge_strength(features)
        weight = ema * weight + 1 - ema
        torch.testing.assert_close(average.matrix(), matrix / weight)
        torch.testing.assert_close(average.edge(), edge / weight)
    assert average.steps == 12


def test_calls_of_one_iteration_are_one_batch_whatever_their_sizes():
    large, small = maps(1, 3, 8, 8), maps(2, 3, 4, 5)
    average = RedundancyAverage(ema=0.5)
    average.update(large)
    average.update(small)
    average.step()
    torch.testing.assert_close(average.matrix(), (naive(large) + 2 * naive(small)) / 3)


def test_images_that_are_not_finite_change_nothing():
    good, bad = maps(2, 3, 5, 5), maps(2, 3, 5, 5, seed=1)
    bad[0, 1, 2, 2] = float("nan")
    average, clean = (RedundancyAverage(ema=0.5, edges=True) for _ in range(2))
    with pytest.raises(ValueError, match="no image had only finite"):
        average.matrix()
    for x in (good, bad, good):
        average.update(x)
        average.step()
        clean.update(x[1:] if x is bad else x)
        clean.step()
    torch.testing.assert_close(average.matrix(), clean.matrix())
    torch.testing.assert_close(average.edge(), clean.edge())
    assert (average.steps, average.skipped, clean.skipped) == (3, 1, 0)


@pytest.mark.parametrize("ema", [0.0, 0.5, 0.99])
def test_iterations_without_images_change_nothing_but_the_age_of_earlier_images(ema):
    old, new = maps(2, 3, 5, 5), maps(2, 3, 5, 5, seed=1)
    average = RedundancyAverage(ema, edges=True)
    average.step()  # nothing to age
    average.update(old)
    average.step()
    for _ in range(2):
        average.step()
        torch.testing.assert_close(average.matrix(), naive(old))
    average.update(new)
    average.step()
    weight = ema**3
    torch.testing.assert_close(average.matrix(), (weight * naive(old) + naive(new)) / (weight + 1))
    torch.testing.assert_close(average.edge(), (weight * edge_strength(old) + edge_strength(new)) / (weight + 1))
    assert average.steps == 2


def test_a_state_goes_on_where_it_was_saved(tmp_path):
    straight, first, second = (RedundancyAverage(ema=0.9, edges=True, stride=2) for _ in range(3))
    for t in range(6):
        for running in (straight, first if t < 3 else second):
            running.update(maps(2, 3, 9, 9, seed=t))
            running.step()
        if t == 2:
            torch.save(first.state_dict(), tmp_path / "state.pt")
            second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(straight.matrix(), second.matrix()) and torch.equal(straight.edge(), second.edge())
    assert second.steps == 6
    with pytest.raises(ValueError, match="not the state"):
        second.load_state_dict({"steps": 1})
    empty = RedundancyAverage()
    empty.load_state_dict(RedundancyAverage().state_dict())
    assert empty.steps == 0


def test_wrong_input_is_named():
    average = RedundancyAverage()
    average.update(maps(1, 3, 4, 4))
    for call, message in (
        (lambda: average.update(maps(1, 4, 4, 4)), "3 channels, got features with 4"),
        (lambda: RedundancyAverage(ema=1.0), r"\[0, 1\), got 1.0"),
        (lambda: similarity(maps(2, 3, 4, 4), normalize="l3"), "l1 or l2, got 'l3'"),
        (lambda: similarity(maps(2, 3, 4, 4), stride=0), "at least 1, got 0"),
        (lambda: similarity(torch.zeros(2, 3, 4, 4, dtype=torch.int64)), "floating-point.*int64"),
        (lambda: similarity(torch.zeros(0, 3, 4, 4)), r"images.*\(0, 3, 4, 4\)"),
        (lambda: similarity(torch.zeros(3)), r"shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


GAPS = ((4, 4), (4, 0), (0, 3), (1, 4), (2, 0))  # images of two processes in iterations; some have none


def _process(rank, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    average = RedundancyAverage(ema=0.9, edges=True)
    late = RedundancyAverage()
    for t in range(4):
        average.update(maps(8, 5, 6, 6, seed=t)[4 * rank : 4 * rank + 4])
        average.step()
        if t in (1, 3):
            average.reduce()
            average.reduce()
    if rank:
        late.update(maps(8, 5, 6, 6))
        late.step()
    late.reduce()
    gaps = {}
    for ema in (0.0, 0.9):
        gaps[ema] = RedundancyAverage(ema=ema)
        for images in GAPS:
            if images[rank]:
                gaps[ema].update(maps(8, 5, 6, 6, seed=sum(images))[4 * rank : 4 * rank + images[rank]])
            gaps[ema].step()
        gaps[ema].reduce()
    torch.save(
        (average.matrix(), average.edge(), late.matrix(), *(g.matrix() for g in gaps.values())), f"{results}/{rank}.pt"
    )
    dist.destroy_process_group()


def test_two_processes_see_what_one_sees(tmp_path):
    mp.start_processes(_process, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=2, start_method="fork")
    one = RedundancyAverage(ema=0.9, edges=True)
    for t in range(4):
        one.update(maps(8, 5, 6, 6, seed=t))
        one.step()
    one.reduce()
    gaps = {ema: RedundancyAverage(ema=ema) for ema in (0.0, 0.9)}
    for images in GAPS:
        for running in gaps.values():
            for rank in range(2):
                if images[rank]:
                    running.update(maps(8, 5, 6, 6, seed=sum(images))[4 * rank : 4 * rank + images[rank]])
            running.step()
    for rank in range(2):
        matrix, edge, late, *seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for running, other in zip(gaps.values(), seen, strict=True):
            torch.testing.assert_close(other, running.matrix(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(matrix, one.matrix(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(edge, one.edge(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(late, similarity(maps(8, 5, 6, 6)))
