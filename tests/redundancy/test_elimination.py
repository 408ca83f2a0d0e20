"""Set-wise elimination against the definition: the error of a set is that of the best refit without it."""

from itertools import combinations

import pytest
import torch

from sirfp.redundancy import elimination
from sirfp.redundancy.elimination import Reader, eliminate


def matrices(inputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A covariance (I, I), weights (O, I) and a gradient covariance (O, O)."""
    generator = torch.Generator().manual_seed(seed)
    mixed, g = (torch.randn(3 * inputs, n, dtype=torch.float64, generator=generator) for n in (inputs, 5))
    mixed @= torch.randn(inputs, inputs, dtype=torch.float64, generator=generator)
    weight = torch.randn(5, inputs, dtype=torch.float64, generator=generator)
    return mixed.T @ mixed / len(mixed), weight, g.T @ g / len(g)


def loss_without(h: torch.Tensor, w: torch.Tensor, g: torch.Tensor, gone: list[int]) -> float:
    """The expected loss `tr(G E[d d'])/2` of the output's change `d` after the best refit to the other inputs."""
    kept = [i for i in range(len(h)) if i not in gone]
    new = w[:, kept] + w[:, gone] @ h[gone][:, kept] @ torch.linalg.inv(h[kept][:, kept])
    change = torch.zeros_like(w)
    change[:, kept] = new
    return float(torch.trace(g @ (change - w) @ h @ (change - w).T) / 2)


def reader(h: torch.Tensor, w: torch.Tensor, g: torch.Tensor, channels: torch.Tensor) -> Reader:
    return Reader(torch.linalg.inv(h), w.T @ g @ w, channels)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_errors_add_up_to_the_loss_of_the_set_after_the_best_refit(width, block, monkeypatch):
    monkeypatch.setattr(elimination, "BLOCK", block)
    size = 7
    h, w, g = matrices(size * width + 2)
    channels = torch.randperm(len(h), generator=torch.Generator().manual_seed(1))[: size * width].reshape(size, width)
    order, errors = eliminate([reader(h, w, g, channels)], size)
    assert sorted(order.tolist()) == list(range(size))
    gone = []
    for atom, total in zip(order.tolist(), errors.cumsum(0).tolist(), strict=True):
        gone += channels[atom].tolist()
        assert total == pytest.approx(loss_without(h, w, g, gone), rel=1e-6)


def test_each_removal_is_the_best_single_one():
    h, w, g = matrices(8)
    order, _ = eliminate([reader(h, w, g, torch.arange(8)[:, None])], 8)
    for step in range(7):
        gone = order[:step].tolist()
        best = min(set(range(8)) - set(gone), key=lambda i: loss_without(h, w, g, [*gone, i]))
        assert int(order[step]) == best


def plainly(readers: list[Reader], size: int) -> tuple[list[int], list[float]]:
    """The order and the errors by whole updates of whole matrices after each elimination."""
    matrices = [(r.inverse.clone(), r.effect.clone(), r.channels) for r in readers]
    left, order, errors = list(range(size)), [], []
    while left:
        added = {}
        for atom in left:
            parts = [torch.linalg.solve(a[s][:, s], m[s][:, s]).trace() / 2 for a, m, s in cut_out(matrices, atom)]
            added[atom] = float(sum(parts))
        best = min(left, key=added.__getitem__)
        order.append(best)
        errors.append(added[best])
        left.remove(best)
        for a, m, s in cut_out(matrices, best):
            v = torch.linalg.solve(a[s][:, s], a[s])
            rows, inner = m[s].clone(), m[s][:, s].clone()
            m -= v.T @ rows + rows.T @ v - v.T @ inner @ v
            a -= v.T @ a[s]
    return order, errors


def cut_out(matrices, atom):
    return [(a, m, channels[atom]) for a, m, channels in matrices]


@pytest.mark.parametrize("widths", [(1,), (1, 1, 1), (2, 1, 3)])
@pytest.mark.parametrize("block, columns", [(4, 8), (4, 512), (64, 8)])
def test_order_and_errors_are_those_of_whole_updates(widths, block, columns, monkeypatch):
    monkeypatch.setattr(elimination, "BLOCK", block)
    monkeypatch.setattr(elimination, "COLUMNS", columns)
    monkeypatch.setattr(elimination, "STRIP", 5)
    size, readers = 40, []
    for seed, width in enumerate(widths):
        h, w, g = matrices(size * width + 3, seed)
        channels = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))[: size * width]
        h += torch.diag(h.diagonal()) / 100
        readers.append(reader(h, w, g, channels.reshape(size, width)))
    before = [(r.inverse.clone(), r.effect.clone()) for r in readers]
    order, errors = eliminate(readers, size)
    wanted, sums = plainly(readers, size)
    assert order.tolist() == wanted and errors.tolist() == pytest.approx(sums, rel=1e-8)
    for read, (a, m) in zip(readers, before, strict=True):
        assert torch.equal(read.inverse, a) and torch.equal(read.effect, m)


def test_atoms_that_are_to_stay_end_the_order_by_their_error():
    h, w, g = matrices(9)
    read = reader(h, w, g, torch.arange(9)[:, None])
    order, errors = eliminate([read], 9, 4)
    whole, _ = eliminate([read], 9)
    assert order[:5].tolist() == whole[:5].tolist() and (errors[5:].diff() >= 0).all()
    single = [loss_without(h, w, g, [*order[:5].tolist(), int(i)]) for i in order[5:]]
    assert errors[5:].tolist() == pytest.approx([x - float(errors[:5].sum()) for x in single], rel=1e-6)


def test_errors_of_all_readers_are_added():
    first, second = matrices(6, 1), matrices(6, 2)
    channels = torch.arange(6)[:, None]
    other = torch.tensor([3, 5, 0, 1, 4, 2])[:, None]
    order, errors = eliminate([reader(*first, channels), reader(*second, other)], 6)
    gone = order[:3].tolist()
    wanted = loss_without(*first, gone) + loss_without(*second, other[gone, 0].tolist())
    assert float(errors[:3].sum()) == pytest.approx(wanted, rel=1e-6)


def test_repeated_channels_go_first_and_cost_nothing_once():
    h, w, g = matrices(5)
    mix = torch.eye(5, dtype=torch.float64)[[0, 1, 2, 3, 4, 2]]  # channel 5 repeats channel 2
    h = mix @ h @ mix.T + 1e-9 * torch.eye(6, dtype=torch.float64)
    w = torch.cat([w, w[:, :1]], 1)
    order, errors = eliminate([reader(h, w, g, torch.arange(6)[:, None])], 6)
    assert int(order[0]) in (2, 5) and float(errors[0]) < 1e-6 * float(errors[1])
    assert 2 in order[1:].tolist() or 5 in order[1:].tolist()


def test_greedy_is_near_the_optimum_of_small_groups():
    gaps = []
    for seed in range(20):
        h, w, g = matrices(9, seed)
        order, _ = eliminate([reader(h, w, g, torch.arange(9)[:, None])], 9)
        best = min(loss_without(h, w, g, list(gone)) for gone in combinations(range(9), 4))
        gaps.append(loss_without(h, w, g, order[:4].tolist()) / best - 1)
    assert min(gaps) > -1e-9 and sorted(gaps)[10] < 0.05 and max(gaps) < 0.5
