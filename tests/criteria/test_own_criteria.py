"""Mistakes in a criterion of one's own end in one line that says what is expected."""

from __future__ import annotations

import pytest
import torch
from small_networks import INPUT, Residual, build

import sirfp
from sirfp.config import load_config, validate
from sirfp.criteria import CRITERIA, Criterion
from sirfp.criteria.parameters import mean_over_filters
from sirfp.errors import InputError


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (lambda group: torch.rand(3), r"the scores of '\S+' must be a tensor \(\d+,\), got a tensor \(3,\)"),
        (lambda group: torch.rand(group.size, 1), r"must be a tensor \(\d+,\), got a tensor \(\d+, 1\)"),
        (lambda group: torch.rand(group.size).numpy(), r"must be a tensor \(\d+,\), got an object of class ndarray"),
        (lambda group: [0.0] * group.size, r"must be a tensor \(\d+,\), got a list of"),
        (lambda group: None, r"must be a tensor \(\d+,\), got none"),
        (lambda group: torch.full((group.size,), torch.nan), "are not finite"),
    ],
)
def test_scores_of_another_form_are_refused(monkeypatch, score, says):
    class Mine(Criterion):
        def scores(self):
            return {group.name: score(group) for group in self.groups}

    monkeypatch.setitem(CRITERIA._obj_map, "mine", Mine)
    with pytest.raises(InputError, match=says):
        sirfp.prune(build(Residual), torch.randn(INPUT), "mine", keep_flops=0.7)


@pytest.mark.parametrize("measure", [lambda filters: filters.std(), lambda filters: filters, lambda filters: 1.0])
def test_a_measure_gives_one_score_for_each_channel(monkeypatch, measure):
    class Mine(Criterion):
        def scores(self):
            return {group.name: mean_over_filters(self.model, group, measure) for group in self.groups}

    monkeypatch.setitem(CRITERIA._obj_map, "mine", Mine)
    with pytest.raises(InputError, match=r"must return a tensor \(\d+,\), one score for each channel, got"):
        sirfp.prune(build(Residual), torch.randn(INPUT), "mine", keep_flops=0.7)


def test_a_group_without_scores_is_named(monkeypatch):
    class Mine(Criterion):
        def scores(self):
            return {group.name: torch.rand(group.size) for group in self.groups[:-1]}

    monkeypatch.setitem(CRITERIA._obj_map, "mine", Mine)
    model, images = build(Residual), torch.randn(INPUT)
    last = sirfp.find_groups(model, images).groups[-1]
    with pytest.raises(InputError, match=rf"the scores of '{last.name}' must be a tensor \({last.size},\), got none"):
        sirfp.prune(model, images, "mine", keep_flops=0.7)


def test_a_class_that_is_no_criterion_is_not_registered():
    class Plain:
        def scores(self):
            return {}

    class Misspelt(Criterion):
        needs = "feature"

    for thing, says in ((Plain, "must be a subclass of sirfp.criteria.Criterion"), (Misspelt, "did you mean features")):
        with pytest.raises(InputError, match=says):
            CRITERIA.register("mine")(thing)
    assert "mine" not in CRITERIA


def test_a_criterion_without_scores_says_so(monkeypatch):
    class Mine(Criterion):
        name = "mine"

    monkeypatch.setitem(CRITERIA._obj_map, "mine", Mine)
    with pytest.raises(InputError, match="criterion 'mine' has no method scores"):
        sirfp.prune(build(Residual), torch.randn(INPUT), "mine", keep_flops=0.7)
    Mine.score = lambda self: {}
    with pytest.raises(InputError, match=r"no method scores, .* \(did you mean score\?\)"):
        validate(load_config("", ["SIRFP.CRITERION", "mine"]))  # before a run or a study begins
