"""Properties of the clique solvers: what greedy removes, and that a slower search never finds a worse set."""

from itertools import combinations
from math import fsum

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sirfp import clique

many = settings(deadline=None, max_examples=60)
few = settings(deadline=None, max_examples=20)


@st.composite
def graphs(draw, least=1, most=12, low=-4):
    """A symmetric matrix of small integers, so that there are ties and sums are exact, and vertex weights or None."""
    size = draw(st.integers(least, most))
    numbers = st.integers(low, 4)
    upper = torch.tensor(draw(st.lists(numbers, min_size=size * size, max_size=size * size)), dtype=torch.float32)
    upper = upper.reshape(size, size).triu()
    weights = upper + upper.triu(1).t()
    vertices = draw(st.none() | st.lists(numbers, min_size=size, max_size=size).map(lambda v: torch.tensor(v).float()))
    return weights, vertices


def algorithm_1(weights, vertices, remove):
    """EHGP written naively: each removal sums over the remaining channels and removes the first with the least sum."""
    left, order, score = list(range(len(weights))), [], []
    for _ in range(remove):
        sums = {
            i: fsum([weights[i, j].item() for j in left if j != i] + ([] if vertices is None else [vertices[i].item()]))
            for i in left
        }
        least = min(left, key=lambda i: (sums[i], i))
        left.remove(least)
        order.append(least)
        score.append(sums[least])
    return order, score


@given(graphs(), st.data())
@many
def test_greedy_is_algorithm_1(graph, data):
    remove = data.draw(st.integers(0, len(graph[0])))
    order, score = clique.greedy(graph[0], remove, graph[1])
    assert (order.tolist(), score.tolist()) == algorithm_1(*graph, remove)


def test_greedy_of_real_numbers_is_algorithm_1():
    maps = torch.randn(40, 25, generator=torch.Generator().manual_seed(0)).double()
    weights = -(maps @ maps.t()).abs()
    order, score = clique.greedy(weights)
    expected_order, expected_score = algorithm_1(weights, None, 40)
    assert order.tolist() == expected_order
    torch.testing.assert_close(score, torch.tensor(expected_score, dtype=torch.float64), atol=1e-9, rtol=1e-12)


@given(graphs())
@many
def test_a_run_to_the_end_scores_all_and_the_scores_add_up_to_the_value(graph):
    weights, vertices = graph
    order, score = clique.greedy(weights, None, vertices)
    assert sorted(order.tolist()) == list(range(len(weights)))
    assert score[-1] == (0 if vertices is None else vertices[order[-1]])
    assert score.sum().item() == clique.value(weights, order, vertices)


def test_ties_go_to_the_lowest_index():
    assert clique.greedy(torch.ones(5, 5))[0].tolist() == [0, 1, 2, 3, 4]


def test_of_two_equal_channels_one_goes_before_any_other():
    maps = torch.eye(4)[[0, 1, 2, 1, 3]]
    assert clique.greedy(-(maps @ maps.t()), 1)[0].tolist() == [1]


def test_a_diagonal_is_not_read():
    weights = torch.rand(6, 6)
    weights = weights + weights.t()
    marked = weights.clone().fill_diagonal_(1e3)
    assert torch.equal(clique.greedy(weights)[0], clique.greedy(marked)[0])
    kept = torch.tensor([4, 0, 2])
    assert clique.value(weights, kept) == pytest.approx(clique.value(marked, kept))
    assert torch.equal(clique.local_search(weights, kept)[0], clique.local_search(marked, kept)[0])
    assert torch.equal(clique.exact(weights, 3)[0], clique.exact(marked, 3)[0])


@given(graphs(), st.data())
@many
def test_local_search_never_loses_to_its_start_and_ends_where_no_swap_wins(graph, data):
    weights, vertices = graph
    size = len(weights)
    kept = torch.tensor(data.draw(st.permutations(range(size)))[: data.draw(st.integers(0, size))], dtype=torch.long)
    found, worth = clique.local_search(weights, kept, vertices)
    assert found.tolist() == sorted(set(found.tolist())) and len(found) == len(kept)
    assert worth == clique.value(weights, found, vertices) >= clique.value(weights, kept, vertices)
    for out in found.tolist():
        for enters in set(range(size)) - set(found.tolist()):
            swapped = torch.tensor([i for i in found.tolist() if i != out] + [enters])
            assert clique.value(weights, swapped, vertices) <= worth


def test_local_search_stops_after_max_swaps():
    weights = torch.randn(30, 30, generator=torch.Generator().manual_seed(1))
    weights = weights + weights.t()
    start = torch.arange(15)
    worths = [clique.local_search(weights, start, max_swaps=n)[1] for n in range(4)]
    assert worths[0] == clique.value(weights, start) and worths == sorted(worths) and worths[3] > worths[0]


@given(graphs(most=9), st.data())
@many
def test_exact_equals_brute_force(graph, data):
    weights, vertices = graph
    keep = data.draw(st.integers(1, len(weights)))
    best = max(clique.value(weights, torch.tensor(kept), vertices) for kept in combinations(range(len(weights)), keep))
    found, worth = clique.exact(weights, keep, vertices)
    assert len(set(found.tolist())) == keep
    assert worth == clique.value(weights, found, vertices) == best


@given(st.integers(0, 10_000), st.sampled_from(["maps", "normal"]), st.data())
@few
def test_exact_never_loses_to_local_search_nor_that_to_greedy(seed, kind, data):
    size = data.draw(st.integers(10, 20))
    keep = data.draw(st.integers(1, size))
    weights = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double()
    weights = -(weights @ weights.t()).abs() if kind == "maps" else weights + weights.t()
    removed = set(clique.greedy(weights, size - keep)[0].tolist())
    greedy = torch.tensor([i for i in range(size) if i not in removed])
    local, worth = clique.local_search(weights, greedy)
    best = clique.exact(weights, keep)[1]
    slack = 1e-9 * weights.abs().sum().item()
    assert clique.value(weights, greedy) <= worth + slack <= best + 2 * slack


def test_exact_takes_thirty_vertices():
    maps = torch.randn(30, 15, generator=torch.Generator().manual_seed(0)).double()
    weights = -(maps @ maps.t()).abs()
    first, worth = clique.exact(weights, 8)
    assert torch.equal(first, clique.exact(weights, 8)[0])
    removed = clique.greedy(weights, 22)[0].tolist()
    assert worth > clique.value(weights, torch.tensor([i for i in range(30) if i not in removed]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clique.greedy(torch.zeros(2, 3)), r"square.*\(2, 3\)"),
        (lambda: clique.greedy(torch.tensor([[0.0, float("nan")], [0.0, 0.0]])), "finite"),
        (lambda: clique.greedy(torch.tensor([[0.0, 1.0], [2.0, 0.0]])), r"symmetric.*\[0, 1\].* 1 and 2"),
        (lambda: clique.greedy(torch.zeros(3, 3), 4), r"\[0, 3\], got 4"),
        (lambda: clique.greedy(torch.zeros(3, 3), -1), r"\[0, 3\], got -1"),
        (lambda: clique.greedy(torch.zeros(3, 3), vertex_weights=torch.zeros(2)), r"shape \(3,\), got \(2,\)"),
        (lambda: clique.greedy(torch.zeros(1, 1), vertex_weights=torch.tensor([float("inf")])), "finite"),
        (lambda: clique.exact(torch.zeros(3, 3), 0), r"\[1, 3\], got 0"),
        (lambda: clique.exact(torch.zeros(40, 40), 3), "at most 32 vertices, got 40"),
        (lambda: clique.value(torch.zeros(3, 3), torch.tensor([1, 1])), "distinct"),
        (lambda: clique.value(torch.zeros(3, 3), torch.tensor([3])), r"\[0, 3\)"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(graphs(least=2))
@few
def test_a_single_entry_out_of_symmetry_is_found(graph):
    weights = graph[0]
    assume(weights.abs().max() > 0)
    weights[0, -1] += 1
    with pytest.raises(ValueError, match=rf"\[0, {len(weights) - 1}\]"):
        clique.greedy(weights)


def test_an_empty_graph_has_nothing_to_remove():
    order, score = clique.greedy(torch.zeros(0, 0))
    assert order.tolist() == score.tolist() == []


@given(graphs(), st.data())
@few
def test_no_set_is_above_the_bound(graph, data):
    weights, vertices = graph
    keep = data.draw(st.integers(1, len(weights)))
    _, most = clique.exact(weights, keep, vertices)
    limit = clique.bound(weights, keep, vertices)
    assert limit >= most - 1e-9 * (1 + weights.abs().sum().item())


def test_the_bound_is_the_value_where_there_is_no_choice_and_near_it_where_there_is_little():
    points = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    weights = -(points @ points.T).abs()
    every = clique.bound(weights, 24)
    assert every == pytest.approx(clique.value(weights, torch.arange(24)))
    _, most = clique.exact(weights, 20)
    assert most <= clique.bound(weights, 20) + 1e-6 <= most + 0.05 * abs(most)
    assert clique.bound(weights, 20) < clique.bound(weights, 20, steps=1)
