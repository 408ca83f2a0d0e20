"""Ties of labels are joined to the components that SciPy finds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sirfp.tracing.channel_labels import Labels


@pytest.mark.parametrize("seed", range(50))
def test_components(seed):
    numbers = np.random.default_rng(seed)
    labels = Labels()
    labels.fresh(40)
    a, b = numbers.integers(0, 40, (2, 5 * numbers.integers(1, 8)))
    labels.ties += [(a[:5], b[:5]), (a[5:], b[5:])]
    graph = coo_matrix((np.ones(len(a)), (a, b)), shape=(40, 40))
    assert (labels.components() == connected_components(graph, directed=False)[1]).all()


def test_long_chains():
    labels = Labels()
    order = np.random.default_rng(0).permutation(labels.fresh(1000))
    labels.ties.append((order[1:900], order[:899]))
    components = labels.components()
    assert len(set(components[order[:900]].tolist())) == 1
    assert len(set(components.tolist())) == 101
