"""FCOS trains in 16 bits as in 32."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from sirfp.config import load_config
from sirfp.network.detectron import training_inputs


def test_losses_in_bfloat16_are_those_of_float32():
    cfg = load_config("")
    cfg.merge_from_list(
        "MODEL.DEVICE cpu MODEL.META_ARCHITECTURE FCOS MODEL.BACKBONE.NAME build_retinanet_timm_fpn_backbone "
        "MODEL.TIMM.NAME mobilenetv3_small_050 MODEL.TIMM.OUT_FEATURES ['stride8','stride16','stride32'] "
        "MODEL.FPN.IN_FEATURES ['stride8','stride16','stride32'] MODEL.FPN.OUT_CHANNELS 64 MODEL.FCOS.NUM_CONVS 1 "
        "MODEL.FCOS.NUM_CLASSES 3".split()
    )
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = training_inputs(model, [{"image": torch.randint(0, 256, (3, 64, 64)).float()}])
    found = []
    for enabled in (False, True):
        model.loss_normalizer = 300.0  # an average over iterations
        with EventStorage(0), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = model(batch)
        assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
        model.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.head.parameters())
        found.append([loss.item() for loss in losses.values()])
    assert found[1] == pytest.approx(found[0], rel=0.05)
