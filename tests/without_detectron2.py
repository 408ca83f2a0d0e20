"""Runs every command with a network of timm and the way from photos to int8; what needs Detectron2 says so in a line.

Before that it looks at what is imported: finding groups loads no SciPy, `sirfp.data` no framework.

    python tests/without_detectron2.py FOLDER [--hide]

It is a program of its own because it runs where Detectron2 is not installed: `test_without_detectron2.py` runs it with
`--hide`, `make test-core` in a new environment. It ends with exit code 0 if all is as it should be.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import io
import json
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = ("detectron2", "hydra", "omegaconf", "pkg_resources", "pydot", "tensorboard")
"""Detectron2, and modules that are installed with the extra `detectron2` only."""
CONFIG = ROOT / "projects/segmentation/configs/scenes/deeplab_v3_plus_r18.yaml"
ZOO = "COCO-Detection/retinanet_R_50_FPN_1x"
NETWORK = ("--timm", "test_resnet", "--num-classes", "4", "--size", "64", "64")


class Hide(importlib.abc.MetaPathFinder):
    """Refuses to import the `HIDDEN` modules, as if they were not installed, and notes in `asked` who were refused."""

    def __init__(self):
        self.asked: set[str] = set()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            self.asked.add(name.partition(".")[0])
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def light_imports(asked: set[str]) -> None:
    """Checks what the first steps import; nothing of it may have been imported before.

    Args:
        asked: hidden modules that an import was refused of.
    """
    import torch
    from torch import nn

    from sirfp.channels import find_groups

    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    find_groups(layers, torch.randn(1, 3, 8, 8)).flops()
    slow = {"scipy", "numpy.ma"} & set(sys.modules)
    assert not slow, f"finding groups imports {', '.join(slow)}, which the first call in a process would wait for"
    importlib.import_module("sirfp.data")
    frameworks = {"detectron2", "sklearn", "skimage"} & (set(sys.modules) | asked)
    assert not frameworks, f"sirfp.data imports {', '.join(frameworks)}"


def command(*argv: object) -> tuple[int, str, str]:
    """Runs a command; returns its exit code, standard output and standard error."""
    from sirfp.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return code, out.getvalue(), err.getvalue()


def result(*argv: object) -> dict:
    """Runs a command, which must succeed; returns its JSON."""
    code, out, err = command(*argv, "--json")
    assert code == 0, (argv, code, err)
    return json.loads(out)


def every_command(folder: Path) -> None:
    """Makes images; prunes, reports and verifies a network of timm; checks data. `photos_to_int8` exports one."""
    scenes, small = folder / "scenes", folder / "small.safetensors"
    made = result("data", "scenes", scenes, "--train", 4, "--val", 1, "--size", 64)
    assert made["train"] == 4
    labels = ("--images", scenes / "train", "--labels", scenes / "trainannot", "--num-classes", 11)
    assert result("data", "check", *labels)["images"] == 4
    images = ("--images", scenes / "train", "--batch", 2, "--batches", 2)
    pruned = result("prune", *NETWORK, *images, "--criterion", "sirfp", "--widths", "ranking", "-o", small)
    assert 0 < pruned["flops"]["kept"] <= 0.4
    assert result("report", small)["file"] == str(small)
    assert result("report", *NETWORK)["groups"]
    dense, pruned = result("report", small, *NETWORK, "--latency", "--repeats", 1, "--warmup", 0)["networks"]
    assert pruned["flops"] < dense["flops"] and pruned["latency_seconds"] > 0
    assert result("verify", small, *NETWORK)["equal"]


def photos_to_int8(folder: Path) -> None:
    """The first part of docs/tutorial.md on a small network: photos, two prunings, a plain loop, commands, int8."""
    import numpy as np
    import timm
    import torch
    from PIL import Image
    from timm.data import create_dataset, create_transform, resolve_model_data_config
    from torch.nn.functional import cross_entropy

    import sirfp

    photos, small = folder / "photos", folder / "classifier.safetensors"
    random = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (photos / name).mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 60, (80, 96, 3)) + 150 * (np.arange(3) == label)
            Image.fromarray(pixels.astype(np.uint8)).save(photos / name / f"{i}.jpg")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    size = {"input_size": (3, 64, 64)}
    transform = create_transform(**resolve_model_data_config(model) | size)
    data = create_dataset("", str(photos), transform=transform)
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)
    example, batches = torch.zeros(1, *size["input_size"]), [images for images, _ in loader]
    for criterion, share in (("magnitude", 0.7), (None, 0.5)):
        plan = sirfp.prune(model, example, criterion, keep_flops=share, calibration=batches)
        assert 0.9 * share < plan.flops[1] / plan.flops[0] <= share, plan
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    sirfp.save(small, model)
    again = timm.create_model("test_resnet", num_classes=2)
    assert sirfp.load(small, again).flops == plan.flops
    assert torch.equal(again.eval()(example), model.eval()(example))
    assert result("report", small)["flops"]["pruned"] == plan.flops[1]
    assert result("verify", small, "--images", photos)["equal"]
    integers = ("-o", folder / "int8.onnx", "--fixed", "all", "--int8", "--images", photos)
    exported = result("export", small, *integers)
    assert exported["relative_difference"] < 1e-3 and exported["int8"]["quantised_layers"] > 0


def what_needs_detectron2(folder: Path) -> None:
    """Checks the message of each way to ask for Detectron2."""
    study = folder / "study.yaml"
    study.write_text("name: none\n")
    for task in ("segmentation", "detection", "classification"):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                runpy.run_path(str(ROOT / "projects" / task / "train_net.py"), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2, end.code
        text = said.getvalue()
        assert text.startswith("error: train_net.py needs Detectron2, which is not installed"), text
        assert text.count("\n") == 1
    for argv in (
        ("report", "--zoo", ZOO),
        ("prune", "--zoo", ZOO, "-o", folder / "zoo.safetensors", "--criterion", "magnitude"),
        ("report", "--config-file", CONFIG),
        ("verify", folder / "small.safetensors", "--config-file", CONFIG),
        ("export", "--config-file", CONFIG, "-o", folder / "config.onnx"),
        ("study", study),
    ):
        code, out, err = command(*argv)
        assert code == 2 and not out and err.count("\n") == 1, (argv, code, out, err)
        assert "needs Detectron2, which is not installed: install it by `pip install '.[detectron2]'" in err, err


if __name__ == "__main__":
    place = Path(sys.argv[1])
    hide = Hide()
    if "--hide" in sys.argv:
        sys.meta_path.insert(0, hide)
    light_imports(hide.asked)
    every_command(place)
    photos_to_int8(place)
    what_needs_detectron2(place)
    assert not any(name.partition(".")[0] == "detectron2" for name in sys.modules)
    print("every command of sirfp works without Detectron2")
