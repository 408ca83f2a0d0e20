"""The trace of a two-stage detector computes its heads for a few boxes and finds the same as with all of them."""

import numpy as np
import pytest
import torch
from marks import slow_but
from torch.utils._python_dispatch import TorchDispatchMode

from sirfp.channels import box_trace, find_groups
from sirfp.channels.box_trace import ROWS
from sirfp.network.proposals import BOXES, box_heads
from sirfp.sources.source import from_zoo

SMALL = (
    "MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 "
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (16,16) MODEL.RPN.POST_NMS_TOPK_TEST 30 TEST.DETECTIONS_PER_IMAGE 12"
).split()
KINDS = [
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
    "COCO-Detection/fast_rcnn_R_50_FPN_1x",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
]


class Rows(TorchDispatchMode):
    """Records how many rows each convolution, matrix product and pooling of regions computes."""

    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ROWS:
            self.seen.append(len(out))
        return out


def found(config):
    torch.manual_seed(0)
    source = from_zoo(config, SMALL, size=(64, 96))
    rows = Rows()
    with rows:
        groups = find_groups(source.model, source.example(), trial=False)
    return groups, rows.seen


def described(groups):
    """What a plan depends on; of sizes in calls those of channels, since others follow boxes."""
    cost = groups.cost.operations
    members = cost.members.summed(np.arange(groups.atoms), groups.atoms)
    return (
        [(g.name, [(s.tensor, s.dim, s.index.tolist()) for s in g.slices]) for g in groups],
        groups.frozen,
        (cost.ops, cost.factors.tolist(), cost.sides.tolist(), cost.fixed.tolist(), members.tolist()),
        [(e.weight, e.positions, e.atoms.tolist()) for e in groups.emissions],
        [(c.place, [n for n, atoms in zip(c.sizes, c.atoms, strict=True) if atoms is not None]) for c in groups.calls],
    )


@pytest.mark.parametrize("config", slow_but(KINDS, "Misc/cascade_mask_rcnn_R_50_FPN_1x"))
def test_groups_and_costs_are_those_of_all_boxes(config, monkeypatch):
    few, rows = found(config)
    monkeypatch.setattr(box_trace, "BOXES", 1000)
    whole, all_rows = found(config)
    assert described(few) == described(whole)
    for tensor, other in zip(few.emissions, whole.emissions, strict=True):
        assert np.array_equal(tensor.emitted, other.emitted, equal_nan=True)
    assert max(rows) <= BOXES < 12 <= max(all_rows)


def test_the_heads_of_a_detector_are_those_that_read_boxes():
    assert box_heads(from_zoo("COCO-Detection/faster_rcnn_R_50_FPN_1x", SMALL, size=(64, 96)).model) == ("roi_heads",)
    assert box_heads(from_zoo("COCO-Detection/rpn_R_50_FPN_1x", SMALL, size=(64, 96)).model) == ()
    assert box_heads(torch.nn.Linear(2, 2)) == ()


def test_rows_that_are_channels_are_all_computed():
    """A head may compute its weight, as the product of two; only rows without channels are boxes."""
    weight, boxes, other = torch.randn(20, 3), torch.randn(20, 3), torch.randn(3, 5)
    trace = box_trace.BoxTrace({"weight": weight})
    trace.heads_of_boxes, trace.owner = ("heads",), lambda: "heads.box_head"
    with trace:
        computed, repeated = torch.mm(weight, other), torch.mm(boxes, other)
        trace.owner = lambda: "heads_of_another_kind"
        elsewhere = torch.mm(boxes, other)
    assert torch.equal(computed, weight @ other) and torch.equal(elsewhere, boxes @ other)
    assert torch.allclose(repeated, (boxes @ other)[torch.arange(20) % BOXES])
