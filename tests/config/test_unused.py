"""Settings that have no effect beside others are refused or named in the log."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from sirfp import engine
from sirfp.config import load_config, validate
from sirfp.config.projects import CHECKOUT
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
        (["MODEL.TEACHER.TEMPERATURE", "2.0"], "there is no teacher"),
        (["SIRFP.RECOVER_ITERS", "9"], "SIRFP.RECOVER_ITERS 9 is not used: SIRFP.STEPS is 1"),
        (["SIRFP.SPARSITY.WEIGHT", "0.1"], "neither SlimmingPenalty nor GroupRegularization"),
        (["SIRFP.SPARSITY.GROWTH", "2.0"], "SIRFP.HOOKS lacks GroupRegularization"),
        (["SIRFP.KEEP_FLOPS", "1.0", "SIRFP.HOOKS", "[]", "SIRFP.ROUND_TO", "8"], "SIRFP.HOOKS lacks PruneSteps"),
        (["SOLVER.POLY_LR_POWER", "0.5"], "is WarmupMultiStepLR, not WarmupPolyLR or PhasedPolyLR"),
        (["MODEL.TIMM.NAME", "resnet50"], "MODEL.TIMM.NAME resnet50 is not used: MODEL.BACKBONE.NAME is build_resnet"),
        (["MODEL.TIMM.OPTIONS", "{'a': 1}"], "MODEL.BACKBONE.NAME is build_resnet"),
        (["MODEL.FCOS.NUM_CLASSES", "3"], "MODEL.META_ARCHITECTURE is GeneralizedRCNN, not FCOS"),
        (["MODEL.RETINANET.NUM_CLASSES", "3"], "not RetinaNet"),
        (["DATASETS.IMAGES.SPLITS", "['a', 'b']"], "DATASETS.IMAGES.READER is empty"),
        (["INPUT.CROP.SIZE", "[9, 9]"], "INPUT.CROP.ENABLED is False"),
        (["PROJECT", "segmentation", "TEST.OVERLAP", "0.5"], "TEST.OVERLAP 0.5 is not used: TEST.WINDOW is [0, 0]"),
        (["PROJECT", "segmentation", "TEST.AUG.SCALES", "[1.0]"], "TEST.AUG.ENABLED is False"),
        (["PROJECT", "segmentation", "SOLVER.GSRL.BETA", "0.9"], "SOLVER.GSRL.WHEN is never"),
        (["PROJECT", "segmentation", "SOLVER.AUXILIARY.WEIGHT", "0.1"], "there is no auxiliary head"),
        (["PROJECT", "classification", "SOLVER.AVERAGE_DECAY", "0.9"], "SIRFP.HOOKS lacks AverageWeights"),
        (["PROJECT", "classification", "INPUT.AUGMENT.MIX_OFF_ITER", "9"], "INPUT.AUGMENT.MIXUP and CUTMIX are 0"),
        (["PROJECT", "classification", "INPUT.MIN_SIZE_TRAIN", "(9,)"], "sizes are INPUT.SIZE and INPUT.TEST_SIZE"),
        (["PROJECT", "classification", "MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"], "INPUT.MEAN and INPUT.STD"),
        (["PROJECT", "classification", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"], "SOLVER.OPTIMIZER_OPTIONS"),
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
        ["SIRFP.RECOVER_ITERS", "9", "SIRFP.STEPS", "2", "SIRFP.ROUND_TO", "8"],
        ["MODEL.TIMM.NAME", "resnet50", "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"],
        ["PROJECT", "segmentation", "TEST.OVERLAP", "0.5", "TEST.WINDOW", "[64, 64]"],
        ["PROJECT", "segmentation", "SOLVER.GSRL.WHEN", "pruned", "SOLVER.GSRL.BETA", "0.9"],
        ["PROJECT", "segmentation", "SOLVER.AUXILIARY.WEIGHT", "0.1", "SOLVER.AUXILIARY.FEATURE", "res4"],
        ["PROJECT", "classification", "MODEL.TIMM.NAME", "resnet50", "INPUT.AUGMENT.MIXUP", "0.2"],
        ["SIRFP.KEEP_FLOPS", "1.0", "SIRFP.KEEP.a", "0.5"],
    ],
)
def test_what_is_used_is_not_named(options):
    assert unused(load_config("", [*PRUNES, *options])) == []


def test_no_config_of_the_projects_has_a_key_without_effect():
    files = [file for file in CHECKOUT.glob("*/configs/**/*.yaml") if "base" not in file.relative_to(CHECKOUT).parts]
    assert len(files) > 50
    assert {file.name: unused(load_config(file)) for file in files} == {file.name: [] for file in files}


def test_a_segmentor_that_is_never_pruned_has_no_loss_from_the_first_pruning_on():
    (text,) = unused(load_config("", ["PROJECT", "segmentation", "SOLVER.GSRL.WHEN", "pruned"]))
    assert text.startswith("SOLVER.GSRL.WHEN pruned is not used: nothing is pruned")


def test_an_evaluation_names_what_it_does_not_use(monkeypatch, caplog):
    cfg = load_config("", ["PROJECT", "segmentation", "TEST.OVERLAP", "0.5", "DATASETS.TEST", "()"])
    monkeypatch.setattr(engine, "setup", lambda args, add_config: cfg)
    monkeypatch.setattr(engine, "set_up", lambda cfg, args: None)
    monkeypatch.setattr(engine, "evaluate", lambda trainer, cfg, resume: {})
    with caplog.at_level(logging.WARNING, "sirfp"):
        assert engine.main(SimpleNamespace(eval_only=True, resume=False), engine.Trainer) == {}
    assert "TEST.OVERLAP 0.5 is not used" in caplog.text
