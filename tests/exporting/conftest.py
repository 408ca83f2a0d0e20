"""A pruned classifier, exported once."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import timm
import torch
from small_models import CLASSIFIER, CLASSIFIER_CLASSES

import sirfp
from sirfp.cli import main


@pytest.fixture(scope="session")
def pruned(tmp_path_factory) -> Path:
    """A pruned classifier's file; its model is not recorded."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=CLASSIFIER_CLASSES).eval()
    plan = sirfp.prune(model, torch.zeros(1, 3, 64, 64), "magnitude", 0.6)
    path = tmp_path_factory.mktemp("pruned") / "small.safetensors"
    sirfp.save(path, model, plan)
    return path


@pytest.fixture(scope="session")
def exported(pruned, tmp_path_factory) -> tuple[Path, dict]:
    """The pruned classifier's ONNX file, and what the command said."""
    file, said = tmp_path_factory.mktemp("exported") / "small.onnx", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["export", str(pruned), *CLASSIFIER, "-o", str(file), "--json"]) == 0
    return file, json.loads(said.getvalue())


@pytest.fixture
def instead_of_exporting(exported, monkeypatch) -> list[tuple[str, ...]]:
    """Gives that file's model in place of PyTorch's exporter, which takes seconds: for what is done with its result.

    Returns the dimensions that were to be left open, in each call.
    """
    import onnx

    from sirfp.exporting import writing

    model, asked = onnx.load(exported[0]), []
    del model.metadata_props[:]

    def export(graph, size, free, opset):
        asked.append(tuple(free))
        return model

    monkeypatch.setattr(writing, "_export_graph", export)
    return asked
