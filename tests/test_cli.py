"""The command line: each command does its work, and whatever is wrong is said in one line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch

import sirfp
from sirfp.checkpoint import PLAN_KEY, read
from sirfp.cli import main

NETWORK = ["--timm", "test_resnet", "--num-classes", "7", "--size", "64", "64"]
CONFIGS = Path(__file__).parents[1] / "projects/segmentation/configs"
SEGMENTOR = ["--config-file", str(CONFIGS / "scenes/deeplab_v3_plus_r18.yaml"), "--size", "64", "64"]
SMALL = "MODEL.TIMM.NAME test_resnet MODEL.SEM_SEG_HEAD.ASPP_CHANNELS 16 MODEL.SEM_SEG_HEAD.CONVS_DIM 16".split()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder of good and bad files of every kind."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # timm begins with zeros in the last norm of a block
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    torch.save(model.state_dict(), root / "dense.pth")
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, root / "training.pth")
    arrays = {k: v.numpy() for k, v in model.state_dict().items()}
    (root / "dense.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "test"}))
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), root / "other.pth")
    torch.save(timm.create_model("test_resnet", num_classes=9).state_dict(), root / "classes.pth")
    torch.save({"model": model}, root / "objects.pth")
    (root / "calls.pkl").write_bytes(pickle.dumps({"model": subprocess.run}))
    (root / "text.pth").write_text("not weights")

    plan = sirfp.prune(model, torch.zeros(1, 3, 64, 64), "magnitude", 0.5)
    sirfp.save(root / "small.safetensors", model, plan)
    whole = (root / "small.safetensors").read_bytes()
    (root / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    _, state = read(root / "small.safetensors")
    save_file(state, str(root / "planless.safetensors"))
    cut = plan.cuts[0]
    altered = replace(plan, cuts=(replace(cut, keep=(*cut.keep[:-1], cut.size)), *plan.cuts[1:]))
    save_file(state, str(root / "altered.safetensors"), metadata={PLAN_KEY: altered.to_json()})
    first = next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dim() == 4)
    lacking = {name: tensor for name, tensor in state.items() if name != first}
    save_file(lacking, str(root / "lacking.safetensors"), metadata={PLAN_KEY: plan.to_json()})

    for folder in ("images/a", "empty", "broken", "labels"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(5):
        cv2.imwrite(str(root / f"images/a/{i}.png"), random.integers(0, 256, (70, 90, 3), dtype=np.uint8))
        cv2.imwrite(str(root / f"labels/{i}.png"), random.integers(0, 3, (70, 90), dtype=np.uint8))
    (root / "broken/0.png").write_bytes((root / "images/a/0.png").read_bytes()[:4000])
    (root / "no.yaml").write_text("MODEL: [")
    return root


def run(capsys, *argv: str) -> dict:
    """Runs a command that must succeed; returns its JSON."""
    assert main([*map(str, argv), "--json"]) == 0
    out, err = capsys.readouterr()
    assert not err and out.count("\n") == 1
    return json.loads(out)


def test_prune_then_report_then_verify(files, tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    pruned = run(
        capsys, "prune", *NETWORK, "--weights", files / "dense.pth", "--images", files / "images", "--batch", 2,
        "--batches", 2, "--keep-flops", 0.6, "--option", "ema=0.9", "--ignore", "layer1", "-o", small,
    )  # fmt: skip
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


def test_tables_for_people(files, capsys):
    assert main(["report", str(files / "small.safetensors"), *NETWORK, "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "GFLOPs" in out and "M params" in out and "it is the model's output" in out
    assert main(["report", *NETWORK]) == 0
    assert "can be pruned" in capsys.readouterr().out


@pytest.mark.parametrize("weights", ["dense.pth", "training.pth", "dense.pkl"])
def test_same_weights_and_seed_give_the_same_plan(files, tmp_path, capsys, weights):
    out = tmp_path / "out.safetensors"
    run(capsys, "prune", *NETWORK, "--weights", files / weights, "--criterion", "magnitude", "-o", out)
    assert read(out)[0].kept == read(files / "small.safetensors")[0].kept


def test_criteria_that_need_labels(files, tmp_path, capsys):
    out, given = tmp_path / "out.safetensors", [*NETWORK, "--num-classes", 1, "--batches", 2, "--batch", 2, "-o"]
    pruned = run(capsys, "prune", *given, out, "--images", files / "images", "--criterion", "sirfp_joint",
                 "--option", "importance=dcfp", "--option", "ema=0.9")  # fmt: skip
    assert pruned["criterion"] == "sirfp_joint"
    root = tmp_path / "scenes"
    run(capsys, "data", "scenes", root, "--train", 3, "--val", 1, "--size", 64)
    folder = {"NAME": "own", "CLASSES": [str(i) for i in range(11)], "TRAIN_IMAGES": root / "train",
              "TRAIN_LABELS": root / "trainannot"}  # fmt: skip
    pairs = [str(x) for key, value in folder.items() for x in (f"DATASETS.FOLDER.{key}", value)]
    given = [*SEGMENTOR, *SMALL, *pairs, "DATASETS.TRAIN", "('own_train',)", "--criterion", "taylor", "-o", out]
    pruned = run(capsys, "prune", "--batches", 1, "--batch", 2, *given)
    assert pruned["criterion"] == "taylor" and pruned["flops"]["kept"] <= 0.5


def test_help_names_every_criterion_and_option():
    from sirfp.commands.prune import CRITERIA_HELP, OPTIONS_HELP
    from sirfp.criteria import CRITERIA

    for name, criterion in CRITERIA.items():
        assert name in CRITERIA_HELP and all(option in OPTIONS_HELP for option in criterion.options())


def test_verify_fails_where_weights_are_not_the_file_s(files, tmp_path, capsys, monkeypatch):
    from sirfp import verify

    original = verify.expand
    monkeypatch.setattr(verify, "expand", lambda model, plan, state: original(model, plan, _disturbed(state)))
    assert main(["verify", str(files / "small.safetensors"), *NETWORK]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "differs from the masked dense model" in err


def _disturbed(state):
    return {name: tensor * 1.01 if name.endswith("weight") else tensor for name, tensor in state.items()}


def test_config_file_of_a_project(tmp_path, files, capsys):
    small = tmp_path / "small.safetensors"
    given = [*SEGMENTOR, *SMALL]
    images = ["--images", files / "images", "--batches", 1, "--batch", 2]
    pruned = run(capsys, "prune", *given, *images, "--keep-flops", 0.5, "-o", small)
    assert pruned["flops"]["kept"] <= 0.5 and any(g["name"].startswith("backbone.") for g in pruned["groups"])
    assert run(capsys, "verify", small, *given)["equal"]


def test_config_file_of_classification(tmp_path, files, capsys):
    config = CONFIGS.parents[1] / "classification/configs/scenes/resnet18_sirfp.yaml"
    given = ["--config-file", config, "MODEL.TIMM.NAME", "test_resnet", "MODEL.WEIGHTS", files / "dense.pth"]
    given += ["MODEL.CLASSIFIER.NUM_CLASSES", "7"]
    small = tmp_path / "small.safetensors"
    told = run(capsys, "report", *given)
    by_name = run(capsys, "report", *NETWORK)
    assert told | {"model": ""} == by_name | {"model": ""}, "the config's images have 64 pixels too"
    run(capsys, "prune", "--images", files / "images", "--batches", 1, "--batch", 2, "-o", small, *given)
    assert run(capsys, "verify", small, *given)["equal"]
    assert run(capsys, "verify", small, *NETWORK)["equal"], "the file is plain timm's"


def test_statistics_over_channels_are_named(tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    given = ["--timm", "test_convnext", "--size", "64", "64"]
    run(capsys, "prune", *given, "--criterion", "random", "-o", small)
    verified = run(capsys, "verify", small, *given)
    assert verified["inexact"] and verified["equal"] is None


def test_data(files, tmp_path, capsys):
    root = tmp_path / "scenes"
    made = run(capsys, "data", "scenes", root, "--train", 3, "--val", 2, "--size", 64)
    assert made["train"] == 3 and (root / "manifest.json").is_file()
    given = ["--images", root / "train", "--labels", root / "trainannot", "--num-classes", 11]
    assert run(capsys, "data", "check", *given) == {"images": 3, "classes": 11, "sizes": [[64, 64]]}
    coco = run(capsys, "data", "check", "--images", root / "val", "--coco", root / "annotations/val.json")
    assert len(coco["classes"]) == 10


PRUNE = ["prune", *NETWORK, "-o", "OUT", "--criterion", "magnitude"]
LOOK = ["prune", *NETWORK, "-o", "OUT"]
BAD = {
    "command": (["reprot"], "did you mean report"),
    "no command": ([], "see sirfp --help"),
    "flag": (["report", "--tim", "resnet18"], "did you mean --timm"),
    "not a number": ([*PRUNE, "--keep-flops", "half"], "half"),
    "no model": (["verify", "F/small.safetensors"], "--timm NAME"),
    "nothing": (["report"], "name a pruned FILE"),
    "two models": (["report", "--timm", "resnet18", "--zoo", "x"], "give one of"),
    "network": (["report", "--timm", "resnt18"], "did you mean resnet18"),
    "zoo": (["report", "--zoo", "COCO-Detection/faster_rcnn_R50_FPN_1x"], "faster_rcnn_R_50_FPN_1x.yaml"),
    "zoo folder": (["report", "--zoo", "retinanet_R_50_FPN_1x"], "did you mean COCO-Detection/retinanet"),
    "config": (["report", "--config-file", "F/none.yaml"], "no config file"),
    "lazy": (["report", "--config-file", "F/none.py"], "no config file"),
    "zoo's lazy": (["report", "--zoo", "COCO-Detection/fcos_R50_FPN_1x.py"], "fcos_R_50_FPN_1x.py"),
    "yaml": (["report", "--config-file", "F/no.yaml"], "no valid YAML"),
    "key": (["report", *SEGMENTOR, "MODEL.TIMM.NAM", "resnet18"], "did you mean MODEL.TIMM.NAME"),
    "half a pair": (["report", *SEGMENTOR, "MODEL.TIMM.NAME"], "left over"),
    "pairs for timm": (["report", *NETWORK, "MODEL.TIMM.NAME", "x"], "are for --config-file"),
    "size 0": (["report", "--timm", "test_resnet", "--size", "0", "64"], "at least 1"),
    "size": (["report", "--timm", "test_vit", "--size", "50", "50"], "choose another --size"),
    "no file": (["report", "F/none.safetensors"], "there is no file"),
    "cut short": (["report", "F/short.safetensors"], "not a whole safetensors file"),
    "no plan": (["verify", "F/planless.safetensors", *NETWORK], "holds no pruning plan"),
    "altered": (["verify", "F/altered.safetensors", *NETWORK], "must hold at least one index below"),
    "lacking": (["verify", "F/lacking.safetensors", *NETWORK], "lacks"),
    "other model": (["report", "F/small.safetensors", "--timm", "test_vit"], "is for another model"),
    "latency alone": (["report", "F/small.safetensors", "--latency"], "needs the dense model"),
    "tolerance": (["verify", "F/small.safetensors", *NETWORK, "--tolerance", "0"], "above 0"),
    "no weights": ([*PRUNE, "--weights", "F/none.pth"], "no file of weights"),
    "other weights": ([*PRUNE, "--weights", "F/other.pth"], "is for another model"),
    "other classes": ([*PRUNE, "--weights", "F/classes.pth"], "number of classes"),
    "text as weights": ([*PRUNE, "--weights", "F/text.pth"], "cannot be read as weights"),
    "objects": ([*PRUNE, "--weights", "F/objects.pth"], "would run code"),
    "pickle": ([*PRUNE, "--weights", "F/calls.pkl"], "it holds a subprocess"),
    "pruned weights": ([*PRUNE, "--weights", "F/small.safetensors"], "of a pruned model"),
    "too much": ([*PRUNE, "--keep-flops", "1.4"], "must lie in (0, 1], got 1.4"),
    "all": ([*PRUNE, "--keep-flops", "0"], "must lie in (0, 1]"),
    "unreachable": ([*PRUNE, "--keep-flops", "0.001"], "(--min-keep 0.02)"),
    "criterion": ([*LOOK, "--criterion", "magnitud"], "did you mean magnitude"),
    "option": ([*LOOK, "--images", "F/images", "--option", "emma=1"], "did you mean ema"),
    "option's type": ([*LOOK, "--images", "F/images", "--option", "ema=much"], "is a number"),
    "option's value": ([*LOOK, "--images", "F/images", "--option", "ema=2"], "must lie in [0, 1)"),
    "ignore": ([*PRUNE, "--ignore", "layer9"], "--ignore names 'layer9', which no module"),
    "no images": (LOOK, "give --images FOLDER"),
    "no labels": ([*LOOK, "--criterion", "taylor"], "with one folder a class"),
    "labels of others": ([*LOOK, "--criterion", "dcfp", "--images", "F/images"], "holds 1 folders with images"),
    "no annotations": (["prune", *SEGMENTOR, "-o", "OUT", "--criterion", "taylor", "--images", "F/images"], "leave it"),
    "no folder": ([*LOOK, "--images", "F/imags"], "did you mean images"),
    "empty folder": ([*LOOK, "--images", "F/empty"], "holds no image"),
    "broken image": ([*LOOK, "--images", "F/broken"], "cannot be read as an image"),
    "no output": (["prune", *NETWORK], "-o/--output"),
    "output in a file": (["prune", *NETWORK, "--criterion", "random", "-o", "F/text.pth/x"], "is not a folder"),
    "output a folder": (["prune", *NETWORK, "--criterion", "random", "-o", "F/empty"], "it is a folder"),
    "scene size": (["data", "scenes", "OUT", "--size", "8"], "at least 64"),
    "no scenes": (["data", "scenes", "F/images"], "is no scene set"),
    "data": (["data", "chek"], "did you mean check"),
    "labels": (["data", "check", "--images", "F/images/a", "--labels", "F/labels", "--num-classes", "2"], "label 2"),
    "coco": (["data", "check", "--images", "F/images/a", "--coco", "F/text.pth"], "is not JSON"),
    "neither": (["data", "check", "--images", "F/images/a"], "give --labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, files, tmp_path, capsys):
    argv, expected = BAD[case]
    before = sorted(files.rglob("*"))
    filled = [a.replace("OUT", str(tmp_path / "out.safetensors")) if a == "OUT" else a for a in argv]
    code = main([f"{files}{a[1:]}" if a.startswith("F/") else a for a in filled])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("error: ") and expected in err, err
    assert list(tmp_path.iterdir()) == [] and sorted(files.rglob("*")) == before


@pytest.mark.parametrize("command", ["", "report", "prune", "verify", "data"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"] if command else ["--help"])
    assert end.value.code == 0
    assert "sirfp" in capsys.readouterr().out


def test_as_a_program(files):
    """One line and no warning of a library, in a process of its own."""
    argv = [sys.executable, "-m", "sirfp.cli", "report", "--zoo", "COCO-Detection/retinanet_R50_FPN_1x"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1 and "did you mean" in ended.stderr
