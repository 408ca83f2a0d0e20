"""Exported pruned segmentors and detectors have the same predictions in onnxruntime as in PyTorch."""

from __future__ import annotations

import pytest
import torch
from small_models import CONFIGS, deeplab, faster_rcnn, give_passing_scores, pictures, pruned, retinanet
from torch import nn
from torch.nn import functional as F

from sirfp.data.scenes import make_scenes
from sirfp.exporting import Session, agreement, build_graph, export, missing_packages, writing
from sirfp.exporting.integer_sizes import integer_sizes
from sirfp.files.quiet import quiet
from sirfp.sources.source import from_config

pytestmark = pytest.mark.skipif(bool(missing_packages()), reason=f"needs {', '.join(missing_packages())}")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The folder of a few scenes."""
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", train=1, val=3, size=128).images("val")


LEVEL = (
    "MODEL.TIMM.OUT_FEATURES ['stride4'] MODEL.SEM_SEG_HEAD.NAME SemSegFPNHead MODEL.SEM_SEG_HEAD.NORM BN "
    "MODEL.SEM_SEG_HEAD.IN_FEATURES ['stride4']"
).split()
"""A semantic FPN of one level, which resizes by a factor as DeepLab's last step does, with half of its operations."""


@pytest.mark.parametrize("options", [LEVEL, pytest.param([], marks=pytest.mark.slow)], ids=["one level", "DeepLab"])
def test_a_segmentor_on_scenes_of_any_size(options, scenes, tmp_path):
    """Its file consists of three joined parts, which pad, predict and crop."""
    source = deeplab(*options)
    graph = build_graph(source, pruned(source))
    written = export(graph, tmp_path / "x.onnx", (64, 96))
    assert written.free == ("batch", "size") and not written.notes
    first, *others = pictures(source, scenes, (64, 96), (128, 128), (57, 90))
    found = agreement(graph, written.path, [first.repeat(3, 1, 1, 1), *others])
    assert found.relative < 1e-4 and found.other_pixels <= 2
    assert found.images == 5 and found.pixels == 3 * 64 * 96 + 128 * 128 + 57 * 90
    classes = graph.original(others[0])[1]
    assert classes.unique().numel() > 1, "one class everywhere, so that any file would agree"


class Resized(nn.Module):
    """Resizes maps to the sizes of others, as DeepLab does with its pooled branch and before its decoder."""

    def forward(self, x):
        deep = F.avg_pool2d(x, 2)
        pooled = F.interpolate(F.adaptive_avg_pool2d(deep, 1), size=deep.shape[2:], mode="bilinear")
        return F.interpolate(deep * pooled, size=x.shape[2:], mode="bilinear")


def test_maps_are_resized_to_the_open_sizes_of_others(tmp_path):
    sides = {i: 4 * torch.export.Dim(name, min=1, max=4096) for i, name in ((2, "rows"), (3, "columns"))}
    with quiet(), torch.no_grad(), integer_sizes():
        written = writing._program(Resized(), (torch.rand(1, 3, 16, 24),), (sides,), ["images"], ["y"])
    (tmp_path / "x.onnx").write_bytes(written.SerializeToString())
    images = torch.rand(1, 3, 36, 20)
    torch.testing.assert_close(Session(tmp_path / "x.onnx")(images)[0], Resized()(images), atol=1e-6, rtol=0)


TWO_LEVELS = (
    "MODEL.TIMM.OUT_FEATURES ['stride4','stride8'] MODEL.FPN.IN_FEATURES ['stride4','stride8'] "
    "MODEL.RETINANET.IN_FEATURES ['p2','p3'] MODEL.ANCHOR_GENERATOR.SIZES [[16,20],[32,40]]"
).split()


@pytest.mark.parametrize("opened", [(), pytest.param(("batch", "size"), marks=pytest.mark.slow)])
def test_a_retinanet_on_scenes(opened, scenes, tmp_path):
    source = retinanet(*([] if opened else TWO_LEVELS))
    source.cfg.INPUT.MIN_SIZE_TEST = 128
    model = pruned(source)
    model.test_score_thresh = 0.68  # many positions have 0.677: chance puts some in the first 100
    graph = build_graph(source, model)
    size = (32, 32) if opened else (64, 96)  # at 32 the coarsest map has one position, at what follows more
    written = export(graph, tmp_path / "x.onnx", size, free=opened)
    assert written.free == opened and not written.notes
    sizes = ((64, 96), (128, 128), (57, 90)) if opened else ((64, 96), (64, 96))
    found = agreement(graph, written.path, pictures(source, scenes, *sizes))
    assert found.detections >= 20 and found.unmatched == 0 and found.relative < 1e-4


@pytest.mark.slow  # RetinaNet's file suppresses boxes by the same operators, test_graphs.py compares both stages
@pytest.mark.parametrize("opened", [(), ("batch", "size")])
def test_a_mask_rcnn_on_scenes(opened, scenes, tmp_path):
    source = faster_rcnn("MODEL.MASK_ON", "True")
    source.cfg.INPUT.MIN_SIZE_TEST = 128
    model = pruned(source)
    model.roi_heads.box_predictor.test_score_thresh = 0.05
    graph = build_graph(source, model)
    written = export(graph, tmp_path / "x.onnx", (64, 96), free=opened)
    assert written.free == opened and not written.notes
    sizes = ((64, 96), (128, 128), (57, 90)) if opened else ((64, 96), (64, 96))
    images = pictures(source, scenes, *sizes)
    found = agreement(graph, written.path, images)
    assert found.detections >= 20 and found.unmatched == 0 and found.relative < 1e-4
    assert set(found.largest) == {"boxes", "scores", "masks"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "name"),
    [("segmentation/configs/camvid/deeplab_v3_plus_lite0.yaml", "camvid"),
     ("detection/configs/bccd/retinanet_lite0.yaml", "bccd")],
)  # fmt: skip
def test_real_images(config, name, real_data, tmp_path):
    """With TensorFlow's padding, on sides that are no multiple of the network's."""
    folder = real_data(name) / "val"
    torch.manual_seed(0)
    source = from_config(str(CONFIGS / config), ["MODEL.TIMM.WEIGHTS", "", "INPUT.MIN_SIZE_TEST", "90"], size=(90, 120))
    if name == "bccd":
        give_passing_scores(source)
    model = pruned(source)
    model.test_score_thresh = 0.4
    graph = build_graph(source, model)
    written = export(graph, tmp_path / "x.onnx", (90, 120), free=())
    found = agreement(graph, written.path, pictures(source, folder, (90, 120), (90, 120), (90, 120)))
    assert found.images == 3 and found.relative < 1e-4 and found.other_pixels <= 3 and found.unmatched <= 1
    assert (found.detections or found.pixels) >= 20
