"""Runs every command with a network of timm, and checks that what needs Detectron2 says so in one line.

    python tests/without_detectron2.py FOLDER [--hide]

It is a program of its own because it runs where Detectron2 is not installed: `test_without_detectron2.py` runs it with
`--hide`, `make test-core` in a new environment. It ends with exit code 0 if all is as it should be.
"""

from __future__ import annotations

import contextlib
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
    """Refuses to import the `HIDDEN` modules, as if they were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


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
    """Makes images; prunes, reports, verifies and exports a network of timm; checks data."""
    scenes, small = folder / "scenes", folder / "small.safetensors"
    made = result("data", "scenes", scenes, "--train", 4, "--val", 1, "--size", 64)
    assert made["train"] == 4
    labels = ("--images", scenes / "train", "--labels", scenes / "trainannot", "--num-classes", 11)
    assert result("data", "check", *labels)["images"] == 4
    images = ("--images", scenes / "train", "--batch", 2, "--batches", 2)
    assert 0 < result("prune", *NETWORK, *images, "--steps", 1, "-o", small)["flops"]["kept"] <= 0.4
    assert result("report", small)["file"] == str(small)
    assert result("report", *NETWORK)["groups"]
    dense, pruned = result("report", small, *NETWORK, "--latency", "--repeats", 1, "--warmup", 0)["networks"]
    assert pruned["flops"] < dense["flops"] and pruned["latency_seconds"] > 0
    assert result("verify", small, *NETWORK)["equal"]
    assert result("export", small, *NETWORK, "-o", folder / "small.onnx")["relative_difference"] < 1e-3


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
    if "--hide" in sys.argv:
        sys.meta_path.insert(0, Hide())
    every_command(place)
    what_needs_detectron2(place)
    assert not any(name.partition(".")[0] == "detectron2" for name in sys.modules)
    print("every command of sirfp works without Detectron2")
