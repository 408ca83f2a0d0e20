"""Criteria: what each of them removes, in cases that can be computed by hand."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from marks import slow_but
from small_networks import INPUT, NETWORKS, OneLayer, build, mean_square
from torch import nn

import sirfp
from sirfp import clique
from sirfp.channels import find_groups
from sirfp.criteria import CRITERIA, build_criterion
from sirfp.criteria.observer import Observer
from sirfp.errors import InputError
from sirfp.network.features import watch
from sirfp.prune import calibrate, refined
from sirfp.redundancy import edge_weights


def _scored(model, name="sirfp", batches=3, **options):
    found = find_groups(model.eval(), torch.randn(INPUT))
    criterion = build_criterion(name, model, found.groups, **options)
    if criterion.needs == "features":
        torch.manual_seed(1)
        calibrate(model, criterion, [torch.randn(4, 3, 16, 16) for _ in range(batches)])
    return found, criterion


def test_of_two_equal_channels_one_goes_first_and_the_other_is_then_no_longer_redundant():
    # channels 1 and 3 are one map; 0, 1 and 2 look at separate inputs
    model = OneLayer([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    _, criterion = _scored(model)
    scores = criterion.scores()["layer"]
    first, other = scores[[1, 3]].sort().values  # which of them goes first, the processor's rounding decides
    assert scores.min() == first and other > first / 4


def test_position_counts():
    # both channels are edges of the same strength in different places: pooled they are one, in space they are not
    model = OneLayer([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    x = torch.zeros(1, 3, 8, 8)
    x[:, 0, :4], x[:, 1, 4:], x[:, 2, :4] = 1, 1, 1  # 0 and 2 in one half, 1 in the other
    found = find_groups(model.eval(), x)
    spatial, pooled = (build_criterion("sirfp", model, found.groups, pooled=p) for p in (False, True))
    for criterion in (spatial, pooled):
        calibrate(model, criterion, [x])
    matrix = spatial.matrix(found["layer"])
    assert matrix[0, 1].abs() < 1e-6 < matrix[0, 2]
    flat = pooled.matrix(found["layer"])
    assert torch.allclose(flat[0, 1], flat[0, 2])


def test_local_search_exchanges_channels_of_a_layer_for_a_better_clique():
    gains = []
    for seed in range(6):
        torch.manual_seed(seed)
        model = OneLayer(torch.randn(20, 3).tolist())
        found, criterion = _scored(model, search="local")
        weights = edge_weights(criterion.matrix(found["layer"]))
        keep = criterion.scores()["layer"] >= criterion.scores()["layer"].sort().values[10]
        better = refined(found, keep.numpy(), criterion)
        assert better.sum() == 10
        gains.append(clique.value(weights, torch.from_numpy(better).nonzero()[:, 0]))
        gains[-1] -= clique.value(weights, keep.nonzero()[:, 0])
        assert np.array_equal(refined(found, keep.numpy(), _scored(model)[1]), keep)  # by default none
    assert min(gains) >= -1e-6 and max(gains) > 0
    with pytest.raises(InputError, match="search must be greedy or local, got 'tabu'"):
        build_criterion("sirfp", model, found.groups, search="tabu")


def test_coupled_layers_make_one_graph_or_a_union():
    found, graph = _scored(build(NETWORKS[0]))
    _, union = _scored(build(NETWORKS[0]), coupled="union")
    group = found["b.0"]
    members = graph._members(group)
    assert len(members) == 3
    torch.testing.assert_close(graph.matrix(group), sum(members) / 3)
    each = torch.stack([union._clique(m) for m in members])
    torch.testing.assert_close(union.scores()["b.0"], each.max(0).values)


def test_the_edge_term_is_added_where_asked():
    model = OneLayer([[1.0, 0, 0], [0, 1.0, 0]])
    _, plain = _scored(model)
    _, edged = _scored(model, edge_weight=0.3, edge_prefixes=("layer",))
    _, elsewhere = _scored(model, edge_weight=0.3, edge_prefixes=("backbone",))
    added = edged.scores()["layer"] - plain.scores()["layer"]
    torch.testing.assert_close(added, 0.3 * edged._average(edged.groups[0].features[0]).edge())
    assert (added > 0).all()
    torch.testing.assert_close(elsewhere.scores()["layer"], plain.scores()["layer"])


def test_redundancy_per_position_is_scaled_by_the_positions():
    model = OneLayer([[1.0, 0, 0], [0, 1.0, 0], [0, 0.5, 0.5]])
    _, plain = _scored(model, per_position=False)
    _, scaled = _scored(model)
    torch.testing.assert_close(scaled.scores()["layer"], plain.scores()["layer"] * INPUT[2] * INPUT[3])


def test_self_similarity_lowers_every_score():
    model = OneLayer([[1.0, 0, 0], [0, 1.0, 0], [0, 0.5, 0.5]])
    _, plain = _scored(model)
    _, whole = _scored(model, self_similarity=True)
    assert (whole.scores()["layer"] < plain.scores()["layer"]).all()


def test_statistics_survive_a_save():
    model = build(NETWORKS[0])
    found, criterion = _scored(model)
    again = build_criterion("sirfp", model, found.groups)
    again.load_state_dict(criterion.state_dict())
    for name, score in criterion.scores().items():
        torch.testing.assert_close(again.scores()[name], score)


def test_magnitude_is_the_norm_of_the_filters_that_make_a_channel():
    model = OneLayer([[1.0, -2, 0], [0, 0.5, 0], [3.0, 0, 1]])
    _, criterion = _scored(model, "magnitude")
    torch.testing.assert_close(criterion.scores()["layer"], torch.tensor([3.0, 0.5, 4.0]))
    residual = build(NETWORKS[0])
    found, criterion = _scored(residual, "magnitude")
    norms = [m[0].weight.detach().abs().sum((1, 2, 3)) for m in (residual.b, residual.short, residual.d)]
    torch.testing.assert_close(criterion.scores()["b.0"], sum(norms) / 3)


def test_random_depends_on_the_seed_alone():
    model = build(NETWORKS[0])
    _, a = _scored(model, "random", seed=1)
    _, b = _scored(model, "random", seed=1)
    _, c = _scored(model, "random", seed=2)
    assert torch.equal(a.scores()["a.0"], b.scores()["a.0"]) and not torch.equal(a.scores()["a.0"], c.scores()["a.0"])


@functools.cache
def groups_of(kind):
    """The groups of a network before its first cut, which no criterion changes."""
    return find_groups(build(kind), torch.randn(INPUT))


CASES = [(kind, name) for kind in NETWORKS for name in sorted(CRITERIA)]


@pytest.mark.parametrize(  # at random, all networks of some number of channels are one
    ("kind", "name"), slow_but(CASES, *(case for case in CASES if case[1] != "random" or case[0] is NETWORKS[0]))
)
def test_every_criterion_prunes_every_network(kind, name, known_groups):
    model = build(kind)
    before = sum(p.numel() for p in model.parameters())
    known_groups(groups_of(kind), model)
    batches = [torch.randn(INPUT) for _ in range(2)]
    refit = 2 if name == "sirfp" else 0  # which does not depend on the criterion
    plan = sirfp.prune(model, batches[0], name, 0.85, batches, seed=3, loss=mean_square, reconstruction=refit)
    assert plan.flops[1] <= 0.85 * plan.flops[0]
    assert sum(p.numel() for p in model.parameters()) == plan.params[1] < before
    model(batches[0])


def test_unknown_names_and_options_are_said():
    model = build(NETWORKS[0])
    found = find_groups(model, torch.randn(INPUT))
    with pytest.raises(InputError, match="did you mean sirfp"):
        build_criterion("sirpf", model, found.groups)
    with pytest.raises(InputError, match="it takes ema, edge_weight"):
        build_criterion("sirfp", model, found.groups, alpha=0.9)
    with pytest.raises(InputError, match="coupled must be graph or union"):
        build_criterion("sirfp", model, found.groups, coupled="both")


def test_a_period_looks_at_every_such_iteration():
    model = OneLayer([[1.0, 0, 0], [0, 1.0, 0]])
    found = find_groups(model.eval(), torch.randn(INPUT))
    criterion = build_criterion("sirfp", model, found.groups)
    with Observer(model, criterion, period=3) as observer:
        for _ in range(7):
            model(torch.randn(INPUT))
            observer.step()
    assert criterion.averages["norm"].steps == 3
    model(torch.randn(INPUT))
    criterion.step()
    assert criterion.averages["norm"].steps == 3  # detached


def test_an_evaluation_between_steps_leaves_no_trace():
    model = OneLayer([[1.0, 0, 0], [0, 1.0, 0]])
    found = find_groups(model.eval(), torch.randn(INPUT))
    criterion = build_criterion("sirfp", model, found.groups)
    with Observer(model, criterion, training=True) as observer:
        model.train()(torch.randn(INPUT))
        model.eval()(torch.full(INPUT, float("nan")))
        observer.step()
    assert torch.isfinite(criterion.matrix(found["layer"])).all() and criterion.averages["norm"].skipped == 0


def test_features_are_seen_before_the_activation():
    import timm
    from detectron2.layers import Conv2d

    seen = []
    norm = timm.layers.BatchNormAct2d(4)
    x = torch.randn(2, 4, 5, 5)
    handle = watch(norm, lambda features: seen.append(features.clone()))  # the activation works in place
    norm(x)
    assert (seen[0] < 0).any()
    handle.remove()
    norm(x)
    assert len(seen) == 1
    convolution = Conv2d(4, 3, 1, activation=nn.functional.relu)
    handle = watch(convolution, seen.append)
    y = convolution(x)
    assert (seen[1] < 0).any() and (y >= 0).all()
    handle.remove()
    assert convolution.activation is nn.functional.relu


def test_channels_last_features_are_seen_as_channels():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.norm, self.down = nn.Linear(3, 7), nn.LayerNorm(7), nn.Linear(7, 2)

        def forward(self, x):
            return self.down(self.norm(self.up(x)))

    model = Tokens()
    batches = [torch.randn(2, 9, 3) for _ in range(2)]
    plan = sirfp.prune(model, batches[0], "sirfp", 0.6, batches)
    assert plan.channels == {"up": 7} and len(plan.kept["up"]) < 7
    assert torch.isfinite(model(batches[0])).all()
