"""The command line: each command works, and each mistake gives one line."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_files import CONFIGS, NETWORK, SEGMENTOR, SMALL, make_files
from registrations import temporary

from sirfp.checkpoint import read
from sirfp.cli import build_parser, main

pytestmark = pytest.mark.usefixtures("found_again")
RANKING = ["--widths", "ranking"]
"""Widths without loss curves, which take longer than the rest of a command."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder of valid and invalid files of every kind."""
    return make_files(tmp_path_factory.mktemp("files"))


def run(capsys, *argv: str) -> dict:
    """Runs a command that must succeed; returns its JSON."""
    assert main([*map(str, argv), "--json"]) == 0
    out, err = capsys.readouterr()
    assert all(line.startswith("warning: ") for line in err.splitlines()) and out.count("\n") == 1
    return json.loads(out)


def test_prune_then_report_then_verify(files, tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    pruned = run(
        capsys, "prune", *NETWORK, "--weights", files / "dense.pth", "--images", files / "images", "--batch", 2,
        "--batches", 2, "--keep-flops", 0.6, "--criterion", "sirfp", "--option", "ema=0.9", "--ignore", "layer1",
        "--keep", "layer2.0.conv1=0.25", "--keep", "layer*.0.conv2=1.0", "-o", small,
    )  # fmt: skip
    plan, _ = read(small)
    assert len(plan.kept["layer2.0.conv1"]) == plan.channels["layer2.0.conv1"] // 4
    assert all(len(plan.kept[name]) == plan.channels[name] for name in plan.kept if name.endswith(".conv2"))
    assert 0.5 < pruned["flops"]["kept"] <= 0.6 and pruned["criterion"] == "sirfp"
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]
    alone = run(capsys, "report", small)
    assert alone["groups"] == pruned["groups"] and alone["file_bytes"] == small.stat().st_size
    both = run(capsys, "report", small, *NETWORK, "--latency", "--repeats", 2, "--warmup", 0, "--threads", 1)
    dense, less = both["networks"]
    assert (dense["flops"], less["flops"]) == (pruned["flops"]["dense"], pruned["flops"]["pruned"])
    assert (dense["params"], less["params"]) == (pruned["params"]["dense"], pruned["params"]["pruned"])
    assert dense["latency_seconds"] > 0 and less["latency_quartiles"][0] > 0
    verified = run(capsys, "verify", small, *NETWORK, "--images", files / "images", "--batches", 1)
    assert verified["equal"] and verified["relative_difference"] < 1e-4


def test_sensitivity(files, tmp_path, capsys):
    given = ["sensitivity", *NETWORK, "--weights", files / "dense.pth", "--images", files / "images", "--batch", 2]
    given += ["--criterion", "magnitude", "--ignore", "layer1*", "--levels", 0.5, "--cache", tmp_path / "cache.json"]
    found = run(capsys, *given, "--csv", tmp_path / "curves.csv", "--plot", tmp_path / "curves.png")
    groups = {group["group"]: group for group in found["groups"]}
    assert groups and not any(name.startswith("layer1") for name in groups) and found["levels"] == [0.5]
    assert all(group["widths"] == [group["channels"] // 2, group["channels"]] for group in groups.values())
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0].startswith("group,channels,kept") and len(lines) == 1 + 2 * len(groups)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert main([str(word) for word in given]) == 0
    out = capsys.readouterr().out
    assert "keeps 50%" in out and all(name in out for name in groups)
    assert run(capsys, *given)["groups"] == found["groups"]


def test_a_pruned_file_is_pruned_further(files, tmp_path, capsys):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    given = [*NETWORK, "--criterion", "magnitude", "--keep-flops"]
    before = run(capsys, "prune", "--weights", files / "dense.pth", *given, 0.7, "-o", first)
    after = run(capsys, "prune", first, "--criterion", "magnitude", "--keep-flops", 0.5, "-o", second)
    assert after["flops"]["dense"] == before["flops"]["dense"] and 0.45 < after["flops"]["kept"] <= 0.5
    assert after["weights"] == str(first) and run(capsys, "report", second)["groups"] == after["groups"]
    assert run(capsys, "verify", second, "--images", files / "images", "--batches", 1)["equal"]


def test_tables_for_people(files, capsys):
    assert main(["report", str(files / "small.safetensors"), *NETWORK, "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "GFLOPs" in out and "M params" in out and "it is the model's output" in out
    assert main(["report", *NETWORK]) == 0
    assert "can be pruned" in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["dense.pth", "training.pth", "dense.pkl"])
def test_same_weights_and_seed_give_the_same_plan(files, tmp_path, capsys, weights):
    out = tmp_path / "out.safetensors"
    given = [*NETWORK, "--weights", files / weights, "--criterion", "magnitude", "--keep-flops", 0.5]
    run(capsys, "prune", *given, "-o", out)
    assert read(out)[0].kept == read(files / "small.safetensors")[0].kept


@pytest.mark.usefixtures("untried")
def test_criteria_that_need_labels(files, tmp_path, capsys):
    out, given = tmp_path / "out.safetensors", [*NETWORK, "--num-classes", 1, "--batches", 2, "--batch", 2, "-o"]
    pruned = run(capsys, "prune", *given, out, "--images", files / "images", "--criterion", "sirfp_joint",
                 "--option", "importance=dcfp", "--option", "ema=0.9", *RANKING)  # fmt: skip
    assert pruned["criterion"] == "sirfp_joint"
    root = tmp_path / "scenes"
    run(capsys, "data", "scenes", root, "--train", 3, "--val", 1, "--size", 64)
    folder = {"NAME": "own", "CLASSES": [str(i) for i in range(11)], "TRAIN_IMAGES": root / "train",
              "TRAIN_LABELS": root / "trainannot"}  # fmt: skip
    pairs = [str(x) for key, value in folder.items() for x in (f"DATASETS.FOLDER.{key}", value)]
    given = [*SEGMENTOR, *SMALL, *pairs, "DATASETS.TRAIN", "('own_train',)", "--criterion", "taylor", "-o", out]
    pruned = run(capsys, "prune", "--batches", 1, "--batch", 2, *RANKING, *given)
    assert pruned["criterion"] == "taylor" and pruned["flops"]["kept"] <= 0.5
    del given[-4:-2]  # the criterion
    pruned = run(capsys, "prune", "--batches", 1, "--batch", 2, *given)
    assert pruned["criterion"] == "sirfp_setwise" and 0.38 < pruned["flops"]["kept"] <= 0.4, "the defaults"


def test_help_names_every_criterion_and_option(capsys):
    from sirfp.commands.prune import CRITERIA_HELP
    from sirfp.criteria import CRITERIA

    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, criterion in CRITERIA.items():
        assert name in CRITERIA_HELP
        for option in criterion.options().values():
            assert f" {option.name}=" in told and option.values in told and option.meaning in told
    assert told.index("options of criteria:") < told.index("example:")


OWN_OPTION = """
from typing import Annotated
from sirfp.criteria import CRITERIA, Criterion
from sirfp.criteria.options import Within
import torch

@CRITERIA.register("last")
class Last(Criterion):
    def __init__(self, model, groups, *, seed=0, sign: Annotated[int, Within(-1, 1)] = 1):
        super().__init__(model, groups, seed=seed)
        self.sign = sign

    def scores(self):
        return {group.name: self.sign * torch.arange(group.size).float() for group in self.groups}
"""


def test_an_option_of_one_s_own_criterion(files, tmp_path, capsys):
    from sirfp.criteria import CRITERIA

    (tmp_path / "own_option.py").write_text(OWN_OPTION)
    given = ["prune", "--import", tmp_path / "own_option.py", *NETWORK, "--criterion", "last", "-o"]
    try:
        for sign in (1, -1):
            out = tmp_path / f"{sign}.safetensors"
            run(capsys, *given, out, "--option", f"sign={sign}")
            cuts = [cut for cut in read(out)[0].cuts if len(cut.keep) < cut.size]
            assert cuts and all((cut.keep[0] == 0) == (sign == -1) for cut in cuts if len(cut.tensors[0]) == 2)
        assert main([str(word) for word in (*given, tmp_path / "x.safetensors", "--option", "sign=2")]) == 2
        assert "option sign must lie in [-1, 1], got 2" in capsys.readouterr().err
        assert main([str(word) for word in (*given, tmp_path / "x.safetensors", "--option", "sgn=1")]) == 2
        assert "did you mean sign" in capsys.readouterr().err
    finally:
        del CRITERIA["last"]


def test_verify_fails_where_weights_are_not_the_file_s(files, tmp_path, capsys, monkeypatch):
    from sirfp import verify

    original = verify.expand
    monkeypatch.setattr(verify, "expand", lambda model, plan, state: original(model, plan, _disturbed(state)))
    assert main(["verify", str(files / "small.safetensors"), *NETWORK]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "differs from the masked dense model" in err


def test_verify_says_that_a_difference_is_rounding(files, capsys):
    assert main(["verify", str(files / "small.safetensors"), *NETWORK, "--tolerance", "1e-12"]) == 0
    out, _ = capsys.readouterr()
    assert "tolerance 1e-12; weights changed by a few units in the last place make" in out
    assert "so it is rounding" in out


def test_verify_looks_at_every_batch_on_its_own(monkeypatch):
    import torch

    from sirfp.commands.verify import _worst
    from sirfp.structure.plan import PruningPlan
    from sirfp.verify import Difference, rounding

    batches = iter([(5e-3, 4e-3), (3e-3, 1e-6)])  # relative difference, effect of rounding errors
    effects = []

    def compared(*_, **__):
        relative, effect = next(batches)
        effects.append(effect)
        return Difference(relative, "output", each={"output": relative})

    monkeypatch.setattr("sirfp.verify.detectors.compare", compared)
    monkeypatch.setattr(rounding, "rounding_of_each", lambda *_: {"output": effects[-1]})
    plan = PruningPlan({}, {}, {}, (0, 0), (0, 0))
    worst, _, count = _worst(torch.nn.Identity(), torch.nn.Identity(), plan, [torch.ones(1)] * 2, 1e-4)
    assert (worst.equal, worst.difference.relative, worst.effect, count) == (False, 3e-3, 1e-6, 2)


def _disturbed(state):
    return {name: tensor * 1.01 if name.endswith("weight") else tensor for name, tensor in state.items()}


@pytest.mark.usefixtures("untried")
def test_config_file_of_a_project(tmp_path, files, capsys):
    small = tmp_path / "small.safetensors"
    given = [*SEGMENTOR, *SMALL]
    images = ["--images", files / "images", "--batches", 1, "--batch", 2]
    pruned = run(capsys, "prune", *given, *images, *RANKING, "--keep-flops", 0.5, "-o", small)
    assert pruned["flops"]["kept"] <= 0.5 and any(g["name"].startswith("backbone.") for g in pruned["groups"])
    assert run(capsys, "verify", small, *given)["equal"]


def test_config_file_of_classification(tmp_path, files, capsys):
    config = CONFIGS.parents[1] / "classification/configs/scenes/resnet18_sirfp.yaml"
    given = ["--config-file", config, "MODEL.TIMM.NAME", "test_resnet", "MODEL.CLASSIFIER.NUM_CLASSES", "7"]
    weights = ["MODEL.WEIGHTS", files / "dense.pth"]
    small = tmp_path / "small.safetensors"
    told = run(capsys, "report", *given, *weights)
    by_name = run(capsys, "report", *NETWORK)
    assert told | {"model": ""} == by_name | {"model": ""}, "the config's images have 64 pixels too"
    images = ["--images", files / "images", "--batches", 1, "--batch", 2]
    run(capsys, "prune", *images, *RANKING, "-o", small, *given, *weights)
    assert run(capsys, "verify", small, *given)["equal"]
    assert run(capsys, "verify", small, *NETWORK)["equal"], "the file is plain timm's"


def test_statistics_over_channels_are_compared(tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    given = ["--timm", "test_convnext", "--size", "64", "64"]
    run(capsys, "prune", *given, "--criterion", "random", "-o", small)
    verified = run(capsys, "verify", small, *given)
    assert verified["equal"] and verified["relative_difference"] < 1e-4


def test_data(files, tmp_path, capsys):
    root = tmp_path / "scenes"
    made = run(capsys, "data", "scenes", root, "--train", 3, "--val", 2, "--size", 64)
    assert made["train"] == 3 and (root / "manifest.json").is_file()
    given = ["--images", root / "train", "--labels", root / "trainannot", "--num-classes", 11]
    checked = run(capsys, "data", "check", *given)
    assert checked.pop("remarks") and checked == {"images": 3, "classes": 11, "sizes": [[64, 64]]}
    coco = run(capsys, "data", "check", "--images", root / "val", "--coco", root / "annotations/val.json")
    assert len(coco["classes"]) == 10


@pytest.mark.parametrize("command", ["", "report", "prune", "verify", "data"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"] if command else ["--help"])
    assert end.value.code == 0
    assert "sirfp" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "224"], "error: --size takes 2 values, separated by a space: --size H W; see sirfp prune --help"),
        (["--size", "224x224"], "error: --size takes 2 values"),
        (["--widths", "curve"], "error: there is no 'curve' for --widths; known are curves, ranking (did you mean"),
    ],
)
def test_values_that_an_option_does_not_take_are_named_with_the_option(words, says, capsys):
    assert main(["prune", "--timm", "resnet18", "-o", "a.safetensors", *words]) == 2
    assert capsys.readouterr().err.startswith(says)


def test_a_file_that_meets_the_budget_already_is_said_to_be_left_whole(tmp_path, capsys):
    first, second, third = (str(tmp_path / f"{name}.safetensors") for name in ("first", "second", "third"))
    how = ["--criterion", "magnitude", "-o"]
    assert main(["prune", "--timm", "test_resnet", "--size", "32", "32", "--keep-flops", "0.5", *how, first]) == 0
    assert main(["prune", first, "--keep-flops", "0.4", *how, second]) == 0
    assert "Nothing was cut" not in capsys.readouterr().out
    assert main(["prune", second, "--keep-flops", "0.6", *how, third]) == 0
    assert f"Nothing was cut: {second} meets this budget already" in capsys.readouterr().out.replace("\n", "")


def test_as_a_program(files):
    """In a new process there is one line and no warning of a library."""
    argv = [sys.executable, "-m", "sirfp.cli", "report", "--zoo", "COCO-Detection/retinanet_R50_FPN_1x"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1 and "did you mean" in ended.stderr


OWN_CODE = """
import timm
from my_blocks import block
from sirfp.criteria import Criterion
from sirfp.criteria.registry import register
from torch import nn

@timm.models.register_model
def my_network(pretrained=False, num_classes=10, **options):
    network = nn.Sequential(block(3, 16), block(16, 24), nn.Flatten(), nn.LazyLinear(num_classes))
    network.pretrained_cfg = {"input_size": (3, 16, 16)}
    network(__import__("torch").zeros(2, 3, 16, 16))
    return network

@register("first")
class First(Criterion):
    needs = "weights"

    def scores(self):
        return {group.name: -__import__("torch").arange(group.size).float() for group in self.groups}
"""
BLOCKS = """
from torch import nn

def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
"""


def test_own_code(tmp_path, monkeypatch, capsys):
    """A network and a criterion that the user's files register, which import each other."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/my_network.py").write_text(OWN_CODE)
    (tmp_path / "code/my_blocks.py").write_text(BLOCKS)
    monkeypatch.chdir(tmp_path)
    words = "prune --import code/my_network.py --timm my_network --criterion first --keep-flops 0.4".split()
    with temporary(tmp_path):
        found = run(capsys, *words, "-o", "s.safetensors")
    assert abs(found["flops"]["kept"] - 0.4) < 0.05
    plan, _ = read(tmp_path / "s.safetensors")
    assert plan.cuts and all(cut.keep == tuple(range(len(cut.keep))) for cut in plan.cuts)


@pytest.mark.parametrize(
    "words",
    [
        "image size (height width) used to count FLOPs",
        "without it the weights are RANDOM",
        "share of the dense model's FLOPs that stay, in (0, 1], also of a pruned FILE",
    ],
)
def test_help_says_it_in_plain_words(words, capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    assert words in " ".join(capsys.readouterr().out.split())


def test_results_say_what_they_mean(files, tmp_path, capsys):
    small = str(files / "small.safetensors")
    assert main(["verify", small, *NETWORK, "--batches", "1"]) == 0
    assert "OK: " in (out := capsys.readouterr().out)
    assert "gives the outputs of the dense timm test_resnet with the removed channels set to zero" in " ".join(
        out.split()
    )
    assert main(["report", small]) == 0
    assert "Budget: 50% of the FLOPs. Kept: 4" in capsys.readouterr().out
    assert main(["verify", str(files / "small.safetensors"), "--timm", "test_efficientnet"]) == 2
    err = capsys.readouterr().err
    assert "is for another model: 'conv1.0.weight' is missing" in err and "name the network that was pruned" in err


def test_alone_it_prints_its_help(capsys):
    assert main([]) == 0
    assert "sirfp COMMAND --help" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_is_no_error(files, capfd):
    """As in `sirfp report FILE | head -c 1`. The process is forked: a new one imports for seconds."""
    reading, writing = os.pipe()
    os.close(reading)
    child, code = os.fork(), 1
    if not child:
        try:
            os.dup2(writing, 1)
            sys.stdout = open(1, "w")  # noqa: SIM115
            ended = main(["report", str(files / "small.safetensors")])
            sys.stdout.flush()  # as Python does at its end
            code = ended
        finally:
            os._exit(code)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert capfd.readouterr().err == ""


def test_a_file_that_is_replaced_is_said(files, tmp_path, capsys):
    words = ["prune", *NETWORK, "--criterion", "magnitude", "-o", str(tmp_path / "small.safetensors")]
    assert main(words) == 0 and "in place of" not in capsys.readouterr().out
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "in place of an earlier file" in out and "Budget: 40% of the FLOPs. Kept: " in out


def test_warnings_of_sirfp_reach_the_user_and_those_of_libraries_do_not(tmp_path, capsys):
    code = tmp_path / "noisy.py"
    code.write_text("""import logging
logging.getLogger("a_library").error("noise")
logging.warning("more noise")
logging.getLogger("sirfp.anything").info("details")
logging.getLogger("sirfp.anything").warning("two images\\nare left out")
""")
    words = ["prune", *NETWORK, "--criterion", "magnitude", "-o", str(tmp_path / "small.safetensors")]
    assert main([*words, "--import", str(code)]) == 0
    said = capsys.readouterr()
    assert said.err == "warning: two images are left out\n"
    assert logging.getLogger("sirfp").propagate and not logging.getLogger("sirfp").handlers


def test_a_long_command_says_first_that_weights_are_random(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SIRFP_PATIENCE", "0")
    assert main(["prune", *NETWORK, "--criterion", "magnitude", "-o", str(tmp_path / "small.safetensors")]) == 0
    said = capsys.readouterr()
    lines = [line.partition("] ")[2] for line in said.err.splitlines()]
    assert lines.index("the weights are random: give --weights FILE for a trained model") < lines.index(
        "finding groups of channels"
    )
    assert "The dense weights were random" in said.out


def test_every_command_takes_own_code():
    """Criteria, networks and data sets of one's own work in all of them; `sirfp data` has further commands."""
    parsers = build_parser()[1]
    data = parsers.pop("data")
    further = next(action.choices for action in data._actions if isinstance(action, argparse._SubParsersAction))
    parsers |= {name: further[name] for name in ("check", "prepare")}
    assert len(parsers) == 8
    for name, parser in parsers.items():
        assert "--import" in parser._option_string_actions, name
