"""Exported files run in onnxruntime and give what PyTorch gives."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch

import sirfp
from sirfp.cli import main
from sirfp.exporting import Agreement, Session
from sirfp.exporting.agreement import compare_detections

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES), reason=f"needs {', '.join(PACKAGES)}"
)
NETWORK = ["--timm", "test_resnet", "--size", "64", "64"]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory) -> Path:
    """A pruned classifier's file."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    plan = sirfp.prune(model, torch.zeros(1, 3, 64, 64), "magnitude", 0.5)
    path = tmp_path_factory.mktemp("pruned") / "small.safetensors"
    sirfp.save(path, model, plan)
    return path


@needs_onnx
def test_pruned_classifier_of_any_batch_and_size(pruned, tmp_path, capsys):
    file = tmp_path / "small.onnx"
    assert main(["export", str(pruned), *NETWORK, "-o", str(file), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["free"] == ["batch", "size"] and said["relative_difference"] < 1e-5
    model = timm.create_model("test_resnet").eval()
    sirfp.load(pruned, model)
    mean, std = (torch.tensor(model.default_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    images = torch.randint(0, 256, (3, 3, 75, 91)).float()
    with torch.no_grad():
        assert torch.allclose(Session(file)(images)[0], model((images / 255 - mean) / std), atol=1e-5)


def test_detections_are_paired_by_class_and_place():
    boxes = torch.tensor([[0, 0, 9.0, 9], [20, 20, 30, 30], [0, 0, 0, 0]])
    ours = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0]), "classes": torch.tensor([1, 2, -1]), "count": 2}
    swapped = {key: value[[1, 0, 2]] if key != "count" else 2 for key, value in ours.items()}
    found = Agreement()
    compare_detections(found, ours, swapped)
    assert (found.detections, found.unmatched, found.relative) == (2, 0, 0)
    compare_detections(found, ours, swapped | {"classes": torch.tensor([2, 0, -1])})
    assert (found.detections, found.unmatched) == (4, 2)


WRONG = {
    "no ending": (["export", *NETWORK, "-o", "small"], "the ending .onnx"),
    "no model": (["export", "-o", "F/x.onnx"], "name the dense model"),
    "no file": (["export", "F/none.safetensors", *NETWORK, "-o", "F/x.onnx"], "there is no file"),
    "threshold": (["export", *NETWORK, "-o", "F/x.onnx", "--score-threshold", "0.5"], "single-stage detectors"),
    "size": (
        ["export", "--timm", "test_vit", "--size", "64", "64", "-o", "F/x.onnx", "--fixed", "odd"],
        "there is no 'odd'",
    ),
    "two stages": (
        ["export", "--zoo", "COCO-Detection/faster_rcnn_R_50_FPN_1x", "--size", "64", "64", "-o", "F/x.onnx"],
        "GeneralizedRCNN cannot be exported",
    ),
    "too small": (
        ["export", "--timm", "inception_v3", "--size", "20", "20", "-o", "F/x.onnx"],
        "cannot be run on 20 x 20 pixels",
    ),
}


@needs_onnx
@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_exported_is_said_in_one_line(case, tmp_path, capsys):
    words, said = WRONG[case]
    assert main([word.replace("F/", f"{tmp_path}/") for word in words]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", *NETWORK, "-o", str(tmp_path / "x.onnx")]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
