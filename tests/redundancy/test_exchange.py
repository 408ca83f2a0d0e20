"""Exchanges of atoms against the definition: the error of a set is that of the best refit without it."""

from itertools import combinations

import pytest
import torch
from test_elimination import loss_without, matrices, reader

from sirfp.redundancy import exchange as module
from sirfp.redundancy.elimination import eliminate
from sirfp.redundancy.exchange import _judge, exchange


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("elements", [1, 2**24])
def test_every_exchange_is_judged_right(width, elements, monkeypatch):
    monkeypatch.setattr(module, "ELEMENTS", elements)
    size = 6
    h, w, g = matrices(size * width + 2)
    channels = torch.randperm(len(h), generator=torch.Generator().manual_seed(1))[: size * width].reshape(size, width)
    inside, outside = torch.tensor([0, 2, 5]), torch.tensor([1, 3, 4])
    error, changes = _judge(reader(h, w, g, channels), inside, outside)
    assert error == pytest.approx(loss_without(h, w, g, channels[outside].flatten().tolist()), rel=1e-6)
    for k, kept in enumerate(inside.tolist()):
        for r, back in enumerate(outside.tolist()):
            gone = [atom for atom in outside.tolist() if atom != back] + [kept]
            wanted = loss_without(h, w, g, channels[gone].flatten().tolist())
            assert error + float(changes[k, r]) == pytest.approx(wanted, rel=1e-6)


def test_the_search_ends_where_no_exchange_is_better_and_is_mostly_the_optimum():
    at_best = 0
    for seed in range(20):
        h, w, g = matrices(9, seed)
        read = reader(h, w, g, torch.arange(9)[:, None])
        order, _ = eliminate([read], 9)
        kept = exchange([read], order[4:], 50)
        gone = sorted(set(range(9)) - set(kept.tolist()))
        found, greedy = loss_without(h, w, g, gone), loss_without(h, w, g, order[:4].tolist())
        best = min(loss_without(h, w, g, list(each)) for each in combinations(range(9), 4))
        assert len(kept) == 5 and best - 1e-9 <= found <= greedy + 1e-9
        for one in gone:
            others = [[atom for atom in gone if atom != one] + [stay] for stay in kept.tolist()]
            assert min(loss_without(h, w, g, each) for each in others) > found * (1 - module.LEAST) - 1e-9
        at_best += found < best * (1 + module.LEAST) + 1e-9
    assert at_best >= 16


def test_errors_of_all_readers_count():
    first, second = matrices(6, 1), matrices(6, 2)
    other = torch.tensor([3, 5, 0, 1, 4, 2])[:, None]
    readers = [reader(*first, torch.arange(6)[:, None]), reader(*second, other)]
    kept = exchange(readers, torch.tensor([0, 1, 2]), 50)
    gone = sorted(set(range(6)) - set(kept.tolist()))

    def loss(removed):
        return loss_without(*first, list(removed)) + loss_without(*second, other[list(removed), 0].tolist())

    assert loss(gone) < loss([3, 4, 5])
    assert loss(gone) <= min(loss([a for a in gone if a != r] + [k]) for r in gone for k in kept.tolist()) * 1.001


@pytest.mark.parametrize("kept", [[], [0, 1, 2, 3]])
def test_nothing_to_exchange(kept):
    h, w, g = matrices(4)
    read = reader(h, w, g, torch.arange(4)[:, None])
    assert exchange([read], torch.tensor(kept, dtype=torch.int64), 5).tolist() == kept
