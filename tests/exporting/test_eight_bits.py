"""Files of 8-bit integers: what is quantised, and how near their results are to those of floats."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from small_models import CLASSIFIER

from sirfp.cli import main
from sirfp.exporting import Session, missing_packages
from sirfp.exporting.eight_bits_accuracy import Accuracy

needs_onnx = pytest.mark.skipif(bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Eight images in each of three folders."""
    root, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir()
        for i in range(8):
            small = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            cv2.imwrite(str(root / name / f"{i}.png"), cv2.resize(small, (80, 70), interpolation=cv2.INTER_CUBIC))
    return root


@needs_onnx
def test_int8_file_of_a_pruned_classifier(pruned, instead_of_exporting, photos, tmp_path, capsys):
    import onnx

    file = tmp_path / "int8.onnx"
    words = ["export", str(pruned), *CLASSIFIER, "-o", str(file), "--int8", "--images", str(photos), "--calibrate", "8"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["int8"]
    assert [p.name for p in tmp_path.iterdir()] == ["int8.onnx"]
    assert instead_of_exporting == [("batch", "size")]
    assert found["calibration_images"] == 8 and found["images"] == found["labelled"] == 16
    assert found["same_class"] >= 12 and set(found["latency_seconds"]) == {"floats", "int8"}
    assert found["quantised_layers"] == found["layers"] > 3 and file.stat().st_size < 0.6 * found["float_bytes"]
    graph = onnx.load(file).graph
    assert len(Session(file)(torch.full((2, 3, 64, 72), 128.0))[0]) == 2  # batch and size are still open
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = [
        n for n in graph.node if n.op_type == "DequantizeLinear" and scales.get(n.input[0], np.zeros(0)).ndim == 4
    ]
    assert weights and all(scales[n.input[1]].size == scales[n.input[0]].shape[0] for n in weights)  # one per channel
    assert all(scales[n.input[0]].dtype == np.int8 for n in weights)


@needs_onnx
def test_the_results_of_both_files_are_printed(pruned, instead_of_exporting, photos, tmp_path, capsys):
    words = ["export", str(pruned), *CLASSIFIER, "-o", str(tmp_path / "x.onnx"), "--int8", "--images", str(photos)]
    assert main([*words, "--reduce-range", "--fixed", "all"]) == 0
    out = capsys.readouterr().out
    assert instead_of_exporting == [()]
    assert "calibrated on 12 images" in out and "on 12 other images" in out
    assert "top-1" in out and "with int8" in out and "Latency in onnxruntime" in out


@pytest.mark.parametrize(
    "given, said",
    [
        (["--int8"], "--int8 needs images for calibration: give --images FOLDER"),
        (["--reduce-range"], "--reduce-range is for --int8"),
        (["--opset", "12"], "--opset must lie in [13, 23]"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, said, tmp_path, capsys):
    assert main(["export", *CLASSIFIER, "-o", str(tmp_path / "x.onnx"), *given]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_one_image_is_not_enough(photos, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/0.png").write_bytes((photos / "a/0.png").read_bytes())
    words = ["-o", str(tmp_path / "x.onnx"), "--int8", "--images", str(tmp_path / "one")]
    assert main(["export", *CLASSIFIER, *words]) == 2
    assert "at least two images" in capsys.readouterr().err


@needs_onnx
def test_only_what_lies_between_layers_is_quantised():
    """A detector's decoding of boxes reads the last layer and must stay in floats, as must the normalisation."""
    from onnx import TensorProto, helper

    from sirfp.exporting.eight_bits import network_nodes

    def node(kind: str, name: str, *names: str):
        return helper.make_node(kind, names[:-1], names[-1:], name=name)

    graph = helper.make_graph(
        [
            node("Mul", "normalise", "images", "std", "x0"),
            node("Conv", "first", "x0", "w", "x1"),
            node("Relu", "relu", "x1", "x2"),
            node("Conv", "second", "x2", "w", "x3"),
            node("Add", "residual", "x2", "x3", "x4"),
            node("LayerNormalization", "norm", "x4", "scale", "x5"),
            node("Conv", "third", "x5", "w", "x6"),
            node("Add", "shortcut", "x6", "x4", "x7"),
            node("Conv", "last", "x7", "w", "deltas"),
            node("Mul", "decode", "deltas", "anchors", "boxes"),
            node("RoiAlign", "pool", "x4", "boxes", "index", "regions"),
            node("Gemm", "box head", "regions", "w", "scores"),
            node("Softmax", "softmax", "scores", "y"),
        ],
        "graph",
        [],
        [],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])],
    )
    expected = {"first", "relu", "second", "residual", "third", "shortcut", "last", "box head"}
    assert network_nodes(graph) == expected


def test_detections_are_paired_by_class_and_overlap():
    boxes = torch.tensor([[[0, 0, 10.0, 10], [20, 20, 30, 30], [50, 50, 60, 60]]])
    floats = {"boxes": boxes, "scores": torch.tensor([[0.9, 0.8, 0.1]]), "classes": torch.tensor([[1, 2, 0]])}
    floats["count"] = torch.tensor([3])
    moved = boxes + torch.tensor([1.0, 0, 1, 0])  # an overlap of 9 / 11
    integers = floats | {"boxes": moved, "scores": torch.tensor([[0.7, 0.4, 0.1]])}
    found = Accuracy()
    found.add(floats, integers)
    assert (found.images, found.detections, found.paired) == (1, (2, 1), 2)
    found.add(floats, integers | {"classes": torch.tensor([[1, 1, 0]])})
    assert (found.images, found.detections, found.paired) == (2, (4, 2), 3)


def test_pixels_and_classes_are_counted():
    found = Accuracy()
    classes = torch.tensor([[[0, 1], [2, 2]]])
    found.add({"logits": torch.zeros(1, 3, 2, 2), "classes": classes}, {"classes": classes.clamp(max=1)})
    assert (found.pixels, found.same_pixels) == (4, 2)
    found = Accuracy()
    logits = torch.eye(3)
    found.add({"logits": logits}, {"logits": logits[[0, 1, 1]]}, torch.tensor([0, 0, 1]))
    assert (found.same_class, found.labelled, found.right) == (2, 3, (1, 2))
