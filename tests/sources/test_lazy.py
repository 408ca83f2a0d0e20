"""Detectron2's lazy configs: built, pruned from the shell, and refused in one line."""

from __future__ import annotations

import json

import pytest
from detectron2.modeling import RetinaNet

from sirfp.cli import main
from sirfp.sources.lazy import build_lazy
from sirfp.sources.source import from_zoo

ZOO = "COCO-Detection/retinanet_R_50_FPN_1x.py"


@pytest.fixture
def config(tmp_path):
    """A segmentor of a few channels as a lazy config."""
    path = tmp_path / "small.py"
    path.write_text(
        "from detectron2.config import LazyCall as L\n"
        "from detectron2.modeling import SemanticSegmentor\n"
        "from detectron2.modeling.backbone.resnet import BasicStem, BasicBlock, ResNet\n"
        "from detectron2.modeling.backbone.fpn import FPN\n"
        "from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead\n"
        "from detectron2.layers import ShapeSpec\n"
        "model = L(SemanticSegmentor)(\n"
        "    backbone=L(ResNet)(\n"
        "        stem=L(BasicStem)(in_channels=3, out_channels=8, norm='BN'),\n"
        "        stages=[[L(BasicBlock)(in_channels=8, out_channels=12, norm='BN')]], out_features=['res2']),\n"
        "    sem_seg_head=L(SemSegFPNHead)(\n"
        "        input_shape=dict(res2=L(ShapeSpec)(channels=12, stride=4)), num_classes=3, conv_dims=16,\n"
        "        common_stride=4, norm='BN'),\n"
        "    pixel_mean=[0.0, 0.0, 0.0], pixel_std=[1.0, 1.0, 1.0])\n"
        "dataloader = dict(test=dict(mapper=dict(augmentations=[dict(short_edge_length=64)])))\n"
    )
    return path


def run(capsys, *argv):
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_prune_verify_and_report(config, tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    plan = run(capsys, "prune", "--config-file", config, "--criterion", "magnitude", "--keep-flops", 0.5, "-o", small)
    assert 0.4 < plan["flops"]["kept"] <= 0.5
    assert run(capsys, "verify", small, "--config-file", config)["equal"]
    assert run(capsys, "report", small, "--config-file", config)


def test_keys_win_over_the_file(config):
    model, inputs = build_lazy(str(config), ["model.sem_seg_head.num_classes", "5"])
    assert model.sem_seg_head.predictor.out_channels == 5
    assert inputs == {"FORMAT": "BGR", "MIN_SIZE_TEST": 64}


@pytest.mark.parametrize(
    "text, opts, expected",
    [
        ("x = 1 / 0\n", [], "cannot be run: ZeroDivisionError"),
        ("train = dict(a=1)\n", [], "defines no model; it defines train"),
        ("model = dict(a=1)\n", [], "not a module of PyTorch"),
        (None, ["model.sem_seg_hed.num_classes", "5"], "no key 'model.sem_seg_hed.num_classes'"),
        (None, ["model.sem_seg_head.num_clases", "5"], "num_classes"),
    ],
)
def test_bad_files_and_keys(config, capsys, text, opts, expected):
    if text is not None:
        config.write_text(text)
    assert main(["report", "--config-file", str(config), *opts]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1 and expected in err


def test_zoo():
    assert isinstance(from_zoo(ZOO, size=(64, 64)).model, RetinaNet)
