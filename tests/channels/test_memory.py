"""Planning leaves no tensor to the garbage collector: what it needed is free as soon as it is done.

Copies of a network in circles of references would stay until garbage is collected, beside the next copies.
"""

from __future__ import annotations

import gc

import pytest
import torch
from small_networks import random_keep
from torch import nn

from sirfp.channels import find_groups
from sirfp.network.fingerprint import fingerprint
from sirfp.prune import cut
from sirfp.sources.source import from_zoo

SMALL = (
    "MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 "
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 30 TEST.DETECTIONS_PER_IMAGE 12"
).split()


class Written(nn.Module):
    """Its second layer cannot be cut, since the code writes its width; a norm is followed through its activation."""

    def __init__(self):
        super().__init__()
        self.i, self.n, self.m = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 3)
        self.o = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = self.m(self.n(self.i(x)).clamp(0, 6))
        return self.o(x[:, torch.arange(12)]) * x.shape[1]


def network():
    return Written().eval(), torch.rand(1, 3, 9, 9)


def detector():
    source = from_zoo("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", SMALL, size=(64, 64))
    return source.model, source.example()


@pytest.mark.parametrize("make", [network, pytest.param(detector, marks=pytest.mark.slow)])
def test_planning_leaves_no_tensor_to_the_garbage_collector(make):
    model, inputs = make()
    assert not held_in_circles(lambda: cut(model, found := find_groups(model, inputs), random_keep(found, 0)))


def test_a_fingerprint_leaves_no_tensor_to_the_garbage_collector():
    assert not held_in_circles(lambda: fingerprint([torch.rand(3), {"state": torch.rand(2)}]))


def held_in_circles(work):
    """The tensors that work leaves in circles of references."""
    gc.collect()
    gc.disable()
    try:
        work()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [type(each) for each in gc.garbage if issubclass(type(each), torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
