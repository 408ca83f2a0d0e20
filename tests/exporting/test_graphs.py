"""Models as functions of one tensor give what Detectron2 and timm give."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import deeplab, faster_rcnn, give_passing_scores, retinanet
from timm.layers.padding import get_same_padding
from torch.nn import functional as F
from torchvision.ops import batched_nms

from sirfp.errors import InputError
from sirfp.exporting import Agreement, build_graph
from sirfp.exporting.agreement import compare_detections
from sirfp.exporting.detectors import top_scores
from sirfp.exporting.integer_sizes import grid_means, integer_sizes, same_padding
from sirfp.exporting.suppression import suppress
from sirfp.exporting.two_stages import roi_features
from sirfp.exporting.writing import traced_size
from sirfp.sources.source import from_timm, from_zoo


def assert_same_detections(graph, ours, theirs) -> None:
    """Also if equal scores are in another order."""
    found = Agreement()
    for i in range(len(ours[0])):
        compare_detections(
            found, *(dict(zip(graph.outputs, [t[i] for t in side], strict=True)) for side in (ours, theirs))
        )
    assert found.unmatched == 0 and found.relative < 1e-5
    for boxes, scores, classes, count in zip(*ours[:4], strict=True):
        assert (scores.diff() <= 0).all()
        assert not boxes[count:].any() and not scores[count:].any() and (classes[count:] == -1).all()


@pytest.mark.parametrize("size", [(64, 96), (57, 90)])
def test_retinanet_as_a_graph_detects_what_detectron2_detects(size):
    source = retinanet()
    graph = build_graph(source)
    images = torch.rand(2, 3, *size) * 255
    with torch.no_grad():
        ours, theirs = graph(images), graph.original(images)
    assert theirs[3].min() > 0, "nothing was detected, so nothing is compared"
    assert_same_detections(graph, ours, theirs)


def test_fcos_as_a_graph_detects_what_detectron2_detects():
    few = ["model.head.conv_dims", "[64]"]
    source = give_passing_scores(from_zoo("COCO-Detection/fcos_R_50_FPN_1x.py", few, size=(64, 96)))
    graph = build_graph(source)
    assert (graph.multiple, graph.coarsest) == (32, 128)
    images = torch.rand(1, 3, 60, 90) * 255
    with torch.no_grad():
        ours, theirs = graph(images), graph.original(images)
    assert theirs[3].min() > 0
    assert_same_detections(graph, ours, theirs)


def test_no_side_of_a_map_is_one_while_sizes_are_open():
    graph = build_graph(retinanet())
    assert (graph.multiple, graph.coarsest) == (32, 128)  # the backbone makes p7, if the head does not look at it
    assert traced_size(graph, (32, 32)) == (255, 383)
    assert traced_size(graph, (300, 300)) == (319, 383)
    assert traced_size(graph, (300, 500)) == (319, 511)


def test_segmentor_as_a_graph_gives_logits_of_the_image():
    graph = build_graph(deeplab())
    images = torch.rand(2, 3, 61, 75) * 255
    with torch.no_grad():
        (logits, classes), (wanted, same) = graph(images), graph.original(images)
    assert logits.shape[2:] == classes.shape[1:] == (61, 75)
    assert torch.allclose(logits, wanted, atol=1e-6) and torch.equal(classes, same)


def test_classifier_normalises_as_timm_does():
    graph = build_graph(from_timm("test_resnet", size=(64, 64)))
    images = torch.randint(0, 256, (2, 3, 64, 64)).float()
    with torch.no_grad():
        assert torch.allclose(graph(images)[0], graph.original(images)[0], atol=1e-6)


CASCADE = "MODEL.ROI_HEADS.NAME CascadeROIHeads MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True".split()
MASKS = "MODEL.MASK_ON", "True"
NARROW = "MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16".split()


@pytest.mark.parametrize(
    "options",
    [
        (),
        MASKS,
        (*MASKS, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
        (*MASKS, *CASCADE),
    ],
)
def test_two_stages_as_a_graph_detect_what_detectron2_detects(options):
    """On sides that are padded, and with fewer proposals than their limit."""
    source = faster_rcnn(*options, "MODEL.RPN.NMS_THRESH", "0.3", "MODEL.RPN.POST_NMS_TOPK_TEST", "300")
    graph = build_graph(source)
    images = torch.rand(2, 3, 70, 90) * 255
    with torch.no_grad():
        ours, theirs = graph(images), graph.original(images)
    assert theirs[3].min() > 0, "nothing was detected, so nothing is compared"
    assert_same_detections(graph, ours, theirs)
    if "MODEL.MASK_ON" in options:
        assert graph.outputs[-1] == "masks" and ours[4].shape == theirs[4].shape and ours[4].max() > 0.5


def test_no_detection_at_all():
    source = faster_rcnn(*MASKS)
    source.model.roi_heads.box_predictor.test_score_thresh = 1.0
    graph = build_graph(source)
    with torch.no_grad():
        boxes, scores, classes, count, masks = graph(torch.rand(2, 3, 64, 96) * 255)
    assert not count.any() and not boxes.any() and not scores.any() and (classes == -1).all() and not masks.any()


def test_regions_of_a_residual_stage():
    """Detectron2's C4 networks pool from one map and go through a stage of the backbone."""
    few = "MODEL.RPN.POST_NMS_TOPK_TEST 20 TEST.DETECTIONS_PER_IMAGE 10 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0".split()
    source = from_zoo("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", [*NARROW, *few], size=(64, 96))
    graph = build_graph(source)
    torch.manual_seed(0)
    images = torch.rand(2, 3, 60, 90) * 255
    predictor, norms = source.model.roi_heads.box_predictor, []
    hook = predictor.register_forward_pre_hook(lambda module, given: norms.append(given[0].norm(dim=1).mean()))
    with torch.no_grad():
        graph(images)
    hook.remove()
    torch.nn.init.normal_(predictor.cls_score.weight, std=3 / float(norms[0]))
    torch.nn.init.normal_(predictor.bbox_pred.weight, std=1 / float(norms[0]))
    with torch.no_grad():
        ours, theirs = graph(images), graph.original(images)
    assert theirs[3].min() > 0
    assert_same_detections(graph, ours, theirs)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", "it finds keypoints"),
        ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", "PanopticFPN cannot be exported; .*Mask and Cascade R-CNN"),
    ],
)
def test_other_detectors_are_refused_by_name(config, why):
    with pytest.raises(InputError, match=why):
        build_graph(from_zoo(config, NARROW, size=(64, 64)))


def test_pooling_is_detectron2s():
    """Boxes of all sizes, some outside of the image or without area."""
    pooler = ROIPooler(5, [1 / 4, 1 / 8, 1 / 16], 0, "ROIAlignV2", canonical_box_size=30, canonical_level=3)
    maps = [torch.rand(2, 3, 64 // 2**n, 96 // 2**n) for n in range(3)]
    corner, side = torch.rand(40, 2) * 200 - 20, torch.rand(40, 2) * torch.logspace(-1, 2.5, 40)[:, None]
    boxes = torch.cat([torch.cat([corner, corner + side], dim=1), torch.zeros(1, 4)])
    images = torch.arange(len(boxes)) // 21
    wanted = pooler(maps, [Boxes(boxes[:21]), Boxes(boxes[21:])])
    assert torch.equal(roi_features(pooler, maps, images, boxes), wanted)


@settings(deadline=None)
@given(*[st.integers(1, 40)] * 2, *[st.integers(1, 7)] * 2)
def test_means_of_a_grid_are_adaptive_pooling(height, width, rows, columns):
    x = torch.rand(2, 3, height, width)
    assert torch.allclose(grid_means(x, rows, columns), F.adaptive_avg_pool2d(x, (rows, columns)), atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_suppression_is_torchvisions_in_each_image_and_class(seed, most):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, 12, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 1 + torch.rand(2, 12, 2, generator=generator) * 20], dim=2)
    scores = torch.rand(2, 3, 12, generator=generator)
    found = {tuple(row) for row in suppress(boxes, scores, 0.4, 0.3, most).tolist()}
    wanted = set()
    for i in range(2):
        for k in range(3):
            index = (scores[i, k] > 0.3).nonzero().flatten()
            kept = batched_nms(boxes[i, index], scores[i, k, index], torch.zeros_like(index), 0.4)
            wanted |= {(i, k, int(j)) for j in index[kept[:most]]}
    assert found == wanted


@given(st.integers(1, 300), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_same_padding_is_timms(side, kernel, stride, dilation):
    assert same_padding(side, kernel, stride, dilation) == get_same_padding(side, kernel, stride, dilation)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_whole_factors_resize_alike(mode):
    x = torch.rand(1, 2, 5, 7)
    wanted = F.interpolate(x, scale_factor=2.0, mode=mode), F.interpolate(x, scale_factor=1.5, mode=mode)
    with integer_sizes():
        found = F.interpolate(x, scale_factor=2.0, mode=mode), F.interpolate(x, scale_factor=1.5, mode=mode)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_best_fills_up_with_zeros():
    scores, places = top_scores(torch.tensor([[0.2, 0.9]]), 3)
    assert scores.tolist() == [[pytest.approx(0.9), pytest.approx(0.2), 0.0]] and places.max() <= 1
