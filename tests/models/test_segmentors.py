"""Detectron2's segmentors: cut by random plans they equal the dense network with the same channels zero."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.utils.analysis import FlopCountAnalysis
from marks import slow_but
from small_networks import random_keep
from small_segmentors import image, segmentor

from sirfp.channels import find_groups
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask

CASES = [
    ("PyramidPoolingHead", "18", "BN"),
    ("ConcatenationHead", "hrnet_w18_small", "BN"),
    ("DeepLabV3Head", "50", "BN"),
    ("DeepLabV3Head", "18", "FrozenBN"),
    ("DeepLabV3PlusHead", "50", "FrozenBN"),
    ("DeepLabV3PlusHead", "18", "SyncBN"),
    ("SemSegFPNHead", "50", "SyncBN"),
    ("SemSegFPNHead", "18", "BN"),
    ("DeepLabV3PlusHead", "timm", "BN"),
    ("DeepLabV3PlusHead", "timm", "FrozenBN"),
]


QUICK = [CASES[i] for i in (0, 1, 4, 6, 9)]
"""Each norm, kind of backbone, and head; DeepLabV3+ does with a decoder what DeepLabV3 does without."""


@pytest.mark.parametrize(("head", "backbone", "norm"), slow_but(CASES, *QUICK))
def test_pruned_equals_masked(head, backbone, norm):
    model = segmentor(head, backbone, norm)
    found = find_groups(model, image())
    made = {f.name for f in found.frozen}
    assert all("predictor" in name for name in made), made  # nothing but the classifier stays whole
    plan = plan_for(found, random_keep(found, 0))
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    difference = compare(masked, pruned, image())
    assert not difference.problem and difference.relative < 1e-4
    assert plan.params[1] == sum(p.numel() for p in pruned.parameters())
    assert plan.flops[1] == FlopCountAnalysis(pruned, image()).unsupported_ops_warnings(False).total()
    for name, shape in pruned.backbone.output_shape().items():
        assert pruned.backbone(torch.zeros(1, 3, 64, 64))[name].shape[1] == shape.channels


def test_a_transformer_keeps_only_what_its_own_code_repeats():
    model = segmentor("AllMLPHead", "pvt_v2_b0", "BN")
    found = find_groups(model, image())
    whole = {f.name for f in found.frozen}
    assert all(name.endswith((".attn.q", ".attn.sr", ".proj", "predictor")) for name in whole), whole
    assert found.flops(random_keep(found, 0)) < 0.6 * found.flops()
    keep = random_keep(found, 0)
    for group in found:
        if group.inexact:  # layer norms run over these, so that masking them is something else
            keep[found.spans[group.name]] = True
    plan = plan_for(found, keep)
    pruned, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(pruned, plan)
    mask(masked, plan)
    difference = compare(masked, pruned, image())
    assert not difference.problem and difference.relative < 1e-4


STEPS = [
    ("DeepLabV3PlusHead", "18"),
    ("PyramidPoolingHead", "18"),
    ("ConcatenationHead", "hrnet_w18_small"),
    ("AllMLPHead", "pvt_v2_b0"),
]


@pytest.mark.parametrize(("head", "backbone"), slow_but(STEPS, *(step for step in STEPS if "hrnet" not in step[1])))
def test_a_pruned_segmentor_takes_a_training_step(head, backbone):
    model = segmentor(head, backbone, "BN")
    found = find_groups(model, image(), trial=False)
    apply(model, plan_for(found, random_keep(found, 1)))
    batch = [{**image()[0], "sem_seg": torch.randint(0, 5, (64, 64))} for _ in range(2)]
    loss = sum(model.train()(batch).values())
    loss.backward()
    assert torch.isfinite(loss)
