"""Distillation compares every kind of network with its teacher: 0 for equal networks, less after training on it."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from marks import slow_but
from small_segmentors import segmentor
from torch import nn

import sirfp
from sirfp.errors import InputError
from sirfp.network.detectron import training_inputs
from sirfp.network.forward import random_images, training_branches
from sirfp.sources.source import from_config
from sirfp.training.distillation import DISTILLATIONS, Distillation, distillation_for, noted

sys.path.append(str(Path(__file__).parents[1] / "exporting"))
from small_models import CONFIGS, deeplab, faster_rcnn, retinanet  # noqa: E402


def fcos():
    options = "MODEL.FPN.OUT_CHANNELS 64 MODEL.FCOS.NUM_CONVS 1 MODEL.FCOS.NUM_CLASSES 3 MODEL.FCOS.NORM GN".split()
    depth = "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.NORM BN".split()
    file = CONFIGS / "detection/configs/coco/fcos_R_50_FPN_1x.yaml"
    fixed = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0"]
    source = from_config(str(file), [*options, *depth, *fixed], size=(64, 96))
    nn.init.normal_(source.model.head.cls_score.weight, std=0.3)
    return source.model


def sure_segmentor(head, backbone):
    """A segmentor whose logits differ from place to place."""
    model = segmentor(head, backbone, "BN")
    nn.init.normal_(model.sem_seg_head.predictor.weight, std=0.5)
    return model


CASCADE = (
    "MODEL.ROI_HEADS.NAME CascadeROIHeads MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True "
    "MODEL.RPN.POST_NMS_TOPK_TRAIN 50"
).split()
PANOPTIC = (
    "MODEL.META_ARCHITECTURE PanopticFPN MODEL.SEM_SEG_HEAD.NAME SemSegFPNHead MODEL.SEM_SEG_HEAD.NUM_CLASSES 4 "
    "MODEL.SEM_SEG_HEAD.IN_FEATURES ['p2','p3','p4','p5'] MODEL.SEM_SEG_HEAD.CONVS_DIM 16 MODEL.MASK_ON True "
    "MODEL.SEM_SEG_HEAD.NORM BN MODEL.SEM_SEG_HEAD.COMMON_STRIDE 4"
).split()
NETWORKS = {
    "RetinaNet": lambda: retinanet().model,
    "FCOS": fcos,
    "Faster R-CNN": lambda: faster_rcnn().model,
    "cascade": lambda: faster_rcnn(*CASCADE).model,
    "Panoptic": lambda: faster_rcnn(*PANOPTIC).model,
    "DeepLabV3+": lambda: deeplab().model,
    "semantic FPN": lambda: sure_segmentor("SemSegFPNHead", "18"),
    "PSPNet": lambda: sure_segmentor("PyramidPoolingHead", "18"),
}
NAMES = {
    "RetinaNet": {"class", "box"},
    "FCOS": {"class", "box", "centre"},
    "Faster R-CNN": {"rpn_class", "rpn_box", "class", "box"},
    "cascade": {"rpn_class", "rpn_box", "class", "box"},
    "Panoptic": {"rpn_class", "rpn_box", "class", "box", "semantic"},
}
QUICK = ["RetinaNet", "FCOS", "cascade", "Panoptic", "DeepLabV3+"]
"""Each loss, of each kind of head: the others share a head's losses with one of these."""


@pytest.fixture(scope="module", params=slow_but(NETWORKS, *QUICK))
def pair(request):
    """(name, a dense network as teacher, the same network cut to half of its FLOPs)."""
    torch.manual_seed(0)
    teacher = NETWORKS[request.param]().eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sirfp.session.find_groups", partial(sirfp.find_groups, trial=False))  # as `untried` does
        sirfp.prune(student, random_images((64, 96), 1, torch.Generator().manual_seed(0)), "magnitude", keep_flops=0.5)
    return request.param, teacher, student


def batch(model):
    return training_inputs(model, random_images((64, 96), 2, torch.Generator().manual_seed(1)))


def compared(student, teacher):
    """The losses of a step with fixed norms, by a fixed sampling of proposals."""
    distillation = distillation_for(student, 2.0)
    with training_branches(student), torch.enable_grad(), noted(distillation.modules(student)) as calls:
        torch.manual_seed(3)
        student(batch(student))
        return distillation.losses(teacher, calls)


def test_equal_networks_have_no_loss(pair):
    name, teacher, _ = pair
    losses = compared(copy.deepcopy(teacher).requires_grad_(True), teacher)
    assert {key.removeprefix("loss_teacher_") for key in losses} == NAMES.get(name, {"semantic"})
    assert all(loss.detach().abs() < 1e-5 and loss.dim() == 0 for loss in losses.values()), losses


def test_a_cut_network_learns_from_its_teacher_alone(pair):
    name, teacher, student = pair
    student, before = copy.deepcopy(student), copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.Adam(student.parameters(), 5e-3)
    values = []
    for _ in range(12):
        losses = compared(student, teacher)
        values.append(float(sum(losses.values()).detach()))
        assert all(loss.isfinite() and loss.detach() > -1e-6 for loss in losses.values()), losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert values[0] > 1e-3 and values[-1] < 0.9 * values[0], values
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())


def test_both_run_in_16_bits(pair):
    name, teacher, student = pair
    with torch.autocast("cpu", torch.bfloat16):
        losses = compared(student, teacher)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values()), losses


class Classes(nn.Module):
    def __init__(self, output=lambda y: y):
        super().__init__()
        self.layer, self.output = nn.Linear(4, 3), output

    def forward(self, x):
        return self.output(self.layer(x))


def test_classifiers_have_a_share_of_the_loss():
    torch.manual_seed(0)
    teacher, student, x = Classes().requires_grad_(False), Classes(), torch.randn(5, 4)
    distillation = distillation_for(student, 3.0)
    with noted(distillation.modules(student)) as calls:
        logits = student(x)
    (loss,) = distillation.losses(teacher, calls).values()
    p, q = ((model(x) / 3).softmax(1) for model in (teacher, student))
    torch.testing.assert_close(loss, 9 * (p * (p / q).log()).sum(1).mean())  # Hinton et al., section 2
    assert distillation.share and loss.requires_grad and logits.requires_grad


def test_a_network_of_one_s_own_has_its_own_distillation():
    class Depth(Classes):
        pass

    @DISTILLATIONS.register("Depth")
    class OfDepth(Distillation):
        def modules(self, student):
            return {"layer": student.layer}

    try:
        assert isinstance(distillation_for(type("Deeper", (Depth,), {})(), 1.0), OfDepth)
    finally:
        del DISTILLATIONS["Depth"]


def test_what_cannot_be_compared_is_said():
    student = Classes(lambda y: {"logits": y})
    distillation = distillation_for(student, 1.0)
    with noted(distillation.modules(student)) as calls:
        student(torch.randn(2, 4))
    with pytest.raises(InputError, match=r"no logits \(N, K\)"):
        distillation.losses(student, calls)
    detector = faster_rcnn().model
    detector.roi_heads = nn.Identity()
    with pytest.raises(InputError, match="no distillation for RPN and Identity; RPN and StandardROIHeads are"):
        distillation_for(detector, 1.0)
    head = segmentor("DeepLabV3PlusHead", "timm", "BN")
    del head.sem_seg_head.predictor
    with pytest.raises(InputError, match="DeepLabV3PlusHead has no layer `predictor`"):
        distillation_for(head, 1.0)
