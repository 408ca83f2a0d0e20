"""Corrections on networks drawn at random are, on held-out images, never worse than none, and better by median."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from drawn_networks import choice, drawn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sirfp.channels import find_groups
from sirfp.moments import take_moments
from sirfp.network.forward import inference
from sirfp.prune import cut


def shares(seed: int) -> tuple[float, float] | None:
    """Returns the errors with bias compensation and with the refit, as shares of that without a correction."""
    model, batches, unseen, draw = drawn(seed)
    found = find_groups(model, unseen[:1])
    if not found.atoms:
        return None
    keep = choice(found, draw)
    with inference(model):
        moments = take_moments(model, found, batches)
        wanted = model(unseen)
    errors = []
    for options in ({"bias_correction": False}, {}, {"moments": moments}):
        pruned = copy.deepcopy(model)
        cut(pruned, found, keep, **options)
        with torch.no_grad():
            errors.append(float((pruned(unseen) - wanted).square().mean()))
    none, bias, refit = (error + 1e-9 * float(wanted.var()) for error in errors)
    return bias / none, refit / none


@pytest.mark.slow
def test_corrections_are_never_worse_than_nothing_and_better_by_median():
    found = [pair for pair in map(shares, range(40)) if pair is not None]
    assert len(found) >= 35
    bias, refit = np.median(found, 0)
    assert bias < 0.99 and refit < 0.8
    assert np.max(found) <= 1.02


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6))
def test_corrections_are_never_worse_than_nothing(seed):
    found = shares(seed)
    assert found is None or max(found) <= 1.02
