"""Widths that modules of Detectron2 store for other modules are correct after pruning."""

from __future__ import annotations

import pytest
import torch
from marks import slow_but
from test_proposals import SMALL

import sirfp
from sirfp.network.forward import inference
from sirfp.sources.source import from_zoo

FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"  # holds a ResNet, which announces its widths too


@pytest.mark.parametrize("config", slow_but([FPN, "COCO-Detection/faster_rcnn_R_50_C4_1x"], FPN))
def test_announced_widths_are_those_of_the_features(config):
    torch.manual_seed(0)
    source = from_zoo(config, SMALL, size=(64, 96))
    model, inputs = source.model, source.example()
    dense = {name: shape.channels for name, shape in model.backbone.output_shape().items()}
    plan = sirfp.prune(model, inputs, "random", 0.4, bias_correction=False)
    backbones = [
        m for m in model.modules() if callable(getattr(m, "output_shape", None)) and hasattr(m, "_out_features")
    ]
    seen = {}
    handles = [m.register_forward_hook(lambda m, _, out: seen.update({m: out})) for m in backbones]
    with inference(model):
        model(inputs)
    for handle in handles:
        handle.remove()
    assert set(seen) == set(backbones) and model.backbone in seen
    for backbone, features in seen.items():
        for name, shape in backbone.output_shape().items():
            assert shape.channels == features[name].shape[1], name
            assert model.get_submodule("backbone") is not backbone or shape.channels < dense[name]
    assert plan.widths
    assert not any("predict_proposals" in vars(module) for module in model.modules()), "trials leave a trace"

    features = seen[model.backbone]
    head = model.proposal_generator.rpn_head.conv
    assert {head.in_channels} == {features[name].shape[1] for name in model.proposal_generator.in_features}
    if hasattr(model.roi_heads, "box_head"):
        first = next(m for m in model.roi_heads.box_head.modules() if isinstance(m, torch.nn.Linear))
        pooled = model.roi_heads.box_pooler.output_size
        widths = {features[name].shape[1] for name in model.roi_heads.box_in_features}
        assert widths == {first.in_features / (pooled[0] * pooled[1])}
    else:
        (name,) = model.roi_heads.in_features
        assert model.roi_heads.res5[0].conv1.in_channels == features[name].shape[1]
