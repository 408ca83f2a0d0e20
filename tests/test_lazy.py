"""Lazy configs name models for the command line as yaml ones do."""

from __future__ import annotations

import json

import pytest

from sirfp.cli import main
from sirfp.source import from_config, from_zoo

LAZY = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

model = L(SemanticSegmentor)(
    backbone=L(ResNet)(
        stem=L(BasicStem)(out_channels=8, norm="BN"),
        stages=[L(ResNet.make_stage)(block_class=BasicBlock, num_blocks=2, in_channels=8, out_channels=16, norm="BN")],
        out_features=["res2"],
    ),
    sem_seg_head=L(SemSegFPNHead)(
        input_shape={"res2": L(ShapeSpec)(channels=16, stride=4)},
        num_classes=3, conv_dims=16, common_stride=4, norm="BN",
    ),
    pixel_mean=[100.0] * 3,
    pixel_std=[50.0] * 3,
)
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(LAZY)
    return str(path)


def test_a_lazy_config_is_pruned_verified_and_reported(config, tmp_path, capsys):
    model = ["--config-file", config, "--size", "64", "96", "--json"]
    small = str(tmp_path / "small.safetensors")
    assert main(["prune", *model, "--criterion", "random", "-o", small]) == 0
    capsys.readouterr()
    assert main(["verify", small, *model]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True
    assert main(["report", small, *model]) == 0


def test_its_data_loader_says_the_size_of_images(config, tmp_path):
    loader = "dataloader = dict(test=dict(mapper=dict(image_format='RGB', augmentations=[dict(short_edge_length=96)])))"
    (tmp_path / "small.py").write_text(LAZY + loader)
    source = from_config(config)
    assert source.size == (96, 96) and source.cfg.INPUT.FORMAT == "RGB"


def test_the_zoos_lazy_configs_are_known_without_their_suffix():
    source = from_zoo("COCO-Detection/fcos_R_50_FPN_1x")
    assert source.name.endswith(".py") and type(source.model).__name__ == "FCOS"
