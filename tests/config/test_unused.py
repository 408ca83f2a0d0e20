"""Settings that have no effect beside others are refused or named in the log."""

from __future__ import annotations

import logging

import pytest

from sirfp.config import load_config, validate
from sirfp.config.unused import unused, warn_of_unused
from sirfp.errors import InputError

PRUNES = ["SIRFP.KEEP_FLOPS", "0.5", "SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Recover']"]
ONNX = ["SIRFP.LATENCY_RUNTIME", "onnxruntime"]


@pytest.mark.parametrize("budget", [["SIRFP.KEEP_PARAMS", "0.5", "SIRFP.KEEP_FLOPS", "1.0"], ["SIRFP.KEEP.a", "0.5"]])
def test_a_runtime_needs_a_budget_of_latency(budget):
    for options in ([*PRUNES, *budget], [*PRUNES]):
        with pytest.raises(InputError, match="LATENCY_RUNTIME onnxruntime is to time .*KEEP_LATENCY"):
            validate(load_config("", [*options, *ONNX]))
    validate(load_config("", [*PRUNES, "SIRFP.KEEP_FLOPS", "1.0", "SIRFP.KEEP_LATENCY", "0.5", *ONNX]))
    validate(load_config("", ONNX))  # a dense run that shares its recipe with a pruned one


def test_a_criterion_of_training_needs_its_statistics():
    options = [*PRUNES, "SIRFP.HOOKS", "['PruneSteps']", "SIRFP.CRITERION"]
    with pytest.raises(InputError, match="'taylor' needs gradients of training iterations, but SIRFP.HOOKS lacks Acc"):
        validate(load_config("", [*options, "taylor"]))
    for criterion in ("magnitude", "sirfp_setwise"):
        validate(load_config("", [*options, criterion]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["SIRFP.KEEP_FLOPS", "1.0"], "nothing is pruned: SIRFP.KEEP_FLOPS, KEEP_PARAMS and KEEP_LATENCY are 1"),
        (["SIRFP.CURVE_IMAGES", "8", "SIRFP.WIDTHS", "ranking"], "CURVE_IMAGES 8 is not used: a ranking decides"),
        (["SIRFP.CURVE_IMAGES", "8", "SIRFP.CRITERION", "magnitude"], "CURVE_IMAGES 8 is not used: a ranking decides"),
        (["SIRFP.LR_FACTOR", "0.5"], "SIRFP.LR_FACTOR 0.5 is not used: SOLVER.LR_SCHEDULER_NAME is WarmupMultiStepLR"),
        (["SIRFP.HOOKS", "['PruneSteps']", "SIRFP.RECOVER_NORM_ITERS", "9"], "SIRFP.HOOKS lacks Recover"),
        (["SIRFP.HOOKS", "['PruneSteps']", "SIRFP.METRICS", "['a']"], "SIRFP.HOOKS lacks Report"),
        (["MODEL.TEACHER.WEIGHTS", "a.pth"], "there is no teacher"),
    ],
)
def test_what_a_run_does_not_use_is_in_its_log(options, says, caplog):
    assert unused(load_config("", PRUNES)) == []
    cfg = load_config("", [*PRUNES, *options])
    validate(cfg)
    with caplog.at_level(logging.WARNING, "sirfp"):
        warn_of_unused(cfg)
    (record,) = caplog.records
    assert says in record.message


@pytest.mark.parametrize(
    "options",
    [
        ["SIRFP.CURVE_IMAGES", "8", "SIRFP.WIDTHS", "curves"],
        ["SIRFP.LR_FACTOR", "0.5", "SOLVER.LR_SCHEDULER_NAME", "PhasedPolyLR"],
        ["SIRFP.RECOVER_NORM_ITERS", "9", "SIRFP.METRICS", "['a']"],
        ["SIRFP.KEEP_FLOPS", "1.0", "SIRFP.KEEP.a", "0.5"],
    ],
)
def test_what_is_used_is_not_named(options):
    assert unused(load_config("", [*PRUNES, *options])) == []
