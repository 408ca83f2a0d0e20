"""FLOPs of detectors depend on the config only, and equal those of Detectron2's own analysis."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.analysis import FlopCountAnalysis
from marks import slow_but

import sirfp
from sirfp.budget.allocation import allocate
from sirfp.channels import find_groups
from sirfp.config import load_config
from sirfp.criteria import build_criterion
from sirfp.network.forward import inference
from sirfp.network.proposals import exactly, fixed_proposals
from sirfp.prune import cut
from sirfp.sources.source import from_zoo

SMALL = (
    "MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 "
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "MODEL.SEM_SEG_HEAD.CONVS_DIM 16 MODEL.SEM_SEG_HEAD.NORM BN MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (16,16) "
    "MODEL.RPN.POST_NMS_TOPK_TEST 30 TEST.DETECTIONS_PER_IMAGE 12"
).split()
KINDS = [
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x",
    "COCO-Detection/retinanet_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "COCO-Detection/fcos_R_50_FPN_1x.py",
]

TRIED = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
"""Where cuts are tried too, in `make test-all`: the FLOPs do not depend on a trial, which takes most of the time."""

FAST = [
    TRIED,  # boxes of a region proposal network, read by heads for boxes and masks
    "COCO-Detection/fast_rcnn_R_50_FPN_1x",  # given boxes
]
"""The heads for boxes of a cascade are followed one after the other in tests/channels/test_box_trace.py."""

CASES = [*((kind, False) for kind in KINDS), (TRIED, True)]

FEATURES = "['stride4','stride8','stride16','stride32']"
SHALLOW = [
    *SMALL, "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_resnet",
    "MODEL.TIMM.OUT_FEATURES", FEATURES, "MODEL.FPN.IN_FEATURES", FEATURES,
]  # fmt: skip
"""Four blocks below the pyramid in place of sixteen, which have no proposals."""


def counted(model, inputs):
    with inference(model), fixed_proposals(model):
        return FlopCountAnalysis(model, inputs).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


@pytest.mark.parametrize(("config", "trial"), slow_but(CASES, *((kind, False) for kind in FAST)))
def test_flops_are_those_of_detectron2s_analysis(config, trial):
    torch.manual_seed(0)
    options = () if config.endswith(".py") else SHALLOW if config in FAST and not trial else SMALL
    source = from_zoo(config, options, size=(64, 96))
    model, inputs = source.model, source.example()
    before = counted(model, inputs)
    found = find_groups(model, inputs, trial=trial)
    scores = build_criterion("random", model, found.groups, seed=0).scores()
    plan = cut(model, found, allocate(found, scores, 0.5 * found.flops()))
    assert plan.flops[1] <= 0.5 * before and plan.flops == (before, counted(model, inputs))
    assert not any("predict_proposals" in vars(module) for module in model.modules())


def test_flops_do_not_hang_on_the_image_or_the_weights():
    flops = set()
    for seed, threshold in ((0, 0.05), (1, 0.9)):
        torch.manual_seed(seed)
        few = ["MODEL.RPN.NMS_THRESH", "0.3", "MODEL.RPN.POST_NMS_TOPK_TEST", "300"]  # fewer boxes pass than may
        options = [*SHALLOW, *few, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", str(threshold)]
        source = from_zoo(TRIED, options, size=(64, 96))
        flops.add(sirfp.find_groups(source.model, source.example(seed=seed), trial=False).flops())
    assert len(flops) == 1


def test_flops_of_fcos_do_not_hang_on_how_much_is_found():
    options = "MODEL.DEVICE cpu MODEL.META_ARCHITECTURE FCOS MODEL.FCOS.NUM_CONVS 1 MODEL.FPN.OUT_CHANNELS 32".split()
    pyramid = ["MODEL.BACKBONE.NAME", "build_retinanet_timm_fpn_backbone"]
    model = build_model(load_config("", [*SHALLOW, *options, *pyramid])).eval()
    flops = set()
    for seed, model.test_score_thresh in ((0, 0.0), (1, 0.9)):
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 255
        inputs = [{"image": image} for image in images]
        with inference(model):
            assert (len(model(inputs)[0]["instances"]) > 0) == (seed == 0)
        flops.add(sirfp.find_groups(model, inputs, trial=False).flops())
    assert len(flops) == 1


@pytest.mark.parametrize("found", [0, 3, 9])
def test_as_many_instances_as_asked(found):
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(found, 1) + torch.arange(found)[:, None]
    given = Instances((20, 30), pred_boxes=Boxes(boxes), scores=torch.arange(found), pred_classes=torch.ones(found))
    filled = exactly(given, 7)
    assert len(filled) == 7 and (filled.pred_boxes.area() > 0).all()
    assert set(filled.scores.tolist()) == set(range(min(found, 7)) if found else [0])
