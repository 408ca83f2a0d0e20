"""Exported files run in onnxruntime and give what PyTorch gives."""

from __future__ import annotations

import functools
import importlib.util
import json

import pytest
import timm
import torch
from small_models import CLASSIFIER, CLASSIFIER_CLASSES

import sirfp
from sirfp.cli import main
from sirfp.exporting import Agreement, Exported, Session, missing_packages, writing
from sirfp.exporting.agreement import compare_detections
from sirfp.exporting.older_operators import with_opset

needs_onnx = pytest.mark.skipif(bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}")


@needs_onnx
def test_pruned_classifier_of_any_batch_and_size(pruned, exported):
    file, said = exported
    assert said["free"] == ["batch", "size"] and said["relative_difference"] < 1e-5
    model = timm.create_model("test_resnet", num_classes=CLASSIFIER_CLASSES).eval()
    sirfp.load(pruned, model)
    mean, std = (torch.tensor(model.default_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    images = torch.randint(0, 256, (3, 3, 75, 91)).float()
    with torch.no_grad():
        assert torch.allclose(Session(file)(images)[0], model((images / 255 - mean) / std), atol=1e-5)


@needs_onnx
@pytest.mark.parametrize(("opset", "form"), [pytest.param(17, 8, marks=pytest.mark.slow), (13, 7)])
def test_an_older_opset_is_written_and_an_opset_that_pytorch_does_not_write_is_converted_to(
    pruned, tmp_path, capsys, monkeypatch, opset, form
):
    """In the oldest version of the format that has it, as runtimes of that time refuse newer ones."""

    def versions(model) -> list[int]:
        return [entry.version for entry in model.opset_import if entry.domain == ""]

    def convert(model, *given):
        written.extend(versions(model))
        return with_opset(model, *given)

    file, written = tmp_path / "small.onnx", []
    monkeypatch.setattr(writing, "with_opset", convert)
    words = ["export", str(pruned), *CLASSIFIER, "-o", str(file), "--fixed", "all", "--opset", str(opset), "--json"]
    assert main(words) == 0 and json.loads(capsys.readouterr().out)["relative_difference"] < 1e-5
    import onnx

    model = onnx.load(file)
    assert written == [18] and versions(model) == [opset] and model.ir_version == form
    assert {prop.key for prop in model.metadata_props} >= {"colours", "values", "model"}


@needs_onnx
def test_an_operator_that_cannot_be_converted_is_named(pruned, instead_of_exporting, tmp_path, capsys, monkeypatch):
    def fail(model, opset):
        raise RuntimeError("No Adapter From Version $19 for Pad\nsecond line")

    monkeypatch.setattr("onnx.version_converter.convert_version", fail)
    words = ["export", str(pruned), *CLASSIFIER, "-o", str(tmp_path / "x.onnx"), "--fixed", "all", "--opset", "13"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "for Pad" in err and "--opset 18 is the oldest" in err


def test_openvino_is_timed_where_it_is_installed(tmp_path, capsys):
    words = ["report", *CLASSIFIER, "--latency", "--runtimes", "eager", "openvino", "--repeats", "1", "--warmup", "0"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["latency"]
    if importlib.util.find_spec("openvino") is None:
        assert found["not_timed"] == {"openvino": "openvino is not installed: pip install openvino"}
    elif not missing_packages():
        assert found["runtimes"]["openvino"]["dense"]["latency_seconds"] > 0


@needs_onnx
def test_a_network_of_one_size_says_so_and_leaves_the_batch_open(tmp_path, capsys, monkeypatch):
    """The exporter drops the network's check of its input size, so the file cannot report a wrong size."""
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, depth=1))  # of 6 equal blocks
    assert main(["export", "--timm", "test_vit", "-o", str(tmp_path / "x.onnx"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["free"] == ["batch"] and said["size"] == [160, 160] and said["relative_difference"] < 1e-4
    assert "size cannot be left open: at 180 x 200 pixels, Input height (180)" in said["notes"][0]


@needs_onnx
def test_a_file_that_onnxruntime_cannot_run_is_said_to_be_so(
    pruned, instead_of_exporting, tmp_path, capsys, monkeypatch
):
    def fail(self, images):
        raise RuntimeError("Non-zero status code returned\nwhile running Reshape")

    monkeypatch.setattr(Session, "__call__", fail)
    assert main(["export", str(pruned), *CLASSIFIER, "-o", str(tmp_path / "x.onnx")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot run it on images of (2, 3, 64, 64)" in err and "--fixed size" in err


@needs_onnx
def test_a_file_that_onnxruntime_cannot_read_is_said_to_be_so(
    pruned, instead_of_exporting, tmp_path, capsys, monkeypatch
):
    def fail(self, *_):
        raise RuntimeError("Could not find an implementation\nfor RoiAlign(22)")

    monkeypatch.setattr(Session, "__init__", fail)
    assert main(["export", str(pruned), *CLASSIFIER, "-o", str(tmp_path / "x.onnx")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "cannot read it (Could not find an implementation for RoiAlign" in err
    assert "older --opset" in err


@needs_onnx
def test_a_detector_of_random_weights_that_differs_is_told_why(tmp_path, capsys, monkeypatch):
    from sirfp import exporting

    def write(graph, path, size, **_):
        path.write_bytes(b"x")
        return Exported(path, (), ())

    monkeypatch.setattr(exporting, "export", write)
    monkeypatch.setattr(exporting, "agreement", lambda *_: Agreement(detections=3, unmatched=1))
    network = ["--zoo", "COCO-Detection/retinanet_R_50_FPN_1x", "--size", "64", "64"]
    assert main(["export", *network, "-o", str(tmp_path / "x.onnx")]) == 1
    assert "its weights are random" in capsys.readouterr().err


def test_detections_are_paired_by_class_and_place():
    boxes = torch.tensor([[0, 0, 9.0, 9], [20, 20, 30, 30], [0, 0, 0, 0]])
    ours = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0]), "classes": torch.tensor([1, 2, -1]), "count": 2}
    swapped = {key: value[[1, 0, 2]] if key != "count" else 2 for key, value in ours.items()}
    found = Agreement()
    compare_detections(found, ours, swapped)
    assert (found.detections, found.unmatched, found.relative) == (2, 0, 0)
    compare_detections(found, ours, swapped | {"classes": torch.tensor([2, 0, -1])})
    assert (found.detections, found.unmatched) == (4, 2)


def test_missing_packages_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["export", *CLASSIFIER, "-o", str(tmp_path / "x.onnx")]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_a_pytorch_that_is_too_old_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.6.0+cpu"))
    assert main(["export", *CLASSIFIER, "-o", str(tmp_path / "x.onnx")]) == 2
    assert "exporting needs torch>=2.8: pip install 'torch>=2.8'" in capsys.readouterr().err
