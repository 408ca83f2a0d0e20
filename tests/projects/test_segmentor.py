"""The supervised segmentor differs from Detectron2's only in its losses; the trainer switches them at the first cut."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from scripts import loaded
from small_networks import random_keep

from sirfp.channels import find_groups
from sirfp.checkpoint import load, read, save
from sirfp.config import load_config
from sirfp.errors import InputError
from sirfp.prune import plan_for
from sirfp.surgery import apply
from sirfp.verify import compare, mask

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "segmentation"
sys.path.insert(0, str(PROJECT))
import segmentation  # noqa: E402

sys.path.remove(str(PROJECT))

SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.NAME", "mobilenetv3_small_050", "MODEL.TIMM.WEIGHTS", "",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16", "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", "0.0",
]  # fmt: skip
HEADS = {
    "DeepLabV3PlusHead": [],
    "DeepLabV3Head": ["MODEL.SEM_SEG_HEAD.IN_FEATURES", "['stride16']", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "16"],
    "SemSegFPNHead": [
        "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.FPN.IN_FEATURES", "['stride4', 'stride16']",
        "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p2', 'p4']",
        "MODEL.TIMM.OUT_FEATURES", "['stride4', 'stride8', 'stride16', 'stride32']", "MODEL.TIMM.OUTPUT_STRIDE", "32",
        "MODEL.FPN.IN_FEATURES", "['stride4', 'stride8', 'stride16', 'stride32']",
    ],
}  # fmt: skip


def config(*change: str, head: str = "DeepLabV3PlusHead"):
    options = [*SMALL, "MODEL.SEM_SEG_HEAD.NAME", head, *HEADS[head], *change]
    file = PROJECT / "configs/base/network/deeplab_v3_plus_timm.yaml"
    return load_config(file, options, segmentation.add_segmentation_config)


def build(cfg, seed: int = 0):
    torch.manual_seed(seed)
    return build_model(segmentation.with_supervised_segmentor(cfg))


def batch(count: int = 2, side: int = 64) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.rand(3, side, side, generator=generator) * 255,
            "sem_seg": torch.randint(0, 3, (side, side), generator=generator),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("head", "kind"),
    [(head, "cross_entropy") for head in HEADS]
    + [(head, "hard_pixel_mining") for head in ("DeepLabV3PlusHead", "DeepLabV3Head")],
)
def test_without_gsrl_its_losses_and_predictions_are_detectron2s(head, kind):
    loss_type = ["MODEL.SEM_SEG_HEAD.LOSS_TYPE", kind]
    plain = build(config(*loss_type, head=head))
    ours = build(config(*loss_type, "SOLVER.GSRL.WHEN", "pruned", head=head))
    assert type(plain) is not type(ours) and list(plain.state_dict()) == list(ours.state_dict())
    data = batch()
    expected, got = plain.train()(data), ours.train()(data)
    assert expected.keys() == got.keys()
    torch.testing.assert_close(got["loss_sem_seg"], expected["loss_sem_seg"])
    for model in (plain, ours):
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(data)[0]["sem_seg"], plain(data)[0]["sem_seg"])


def test_gsrl_knows_the_sampled_class():
    model = build(config("SOLVER.GSRL.WHEN", "always")).train()
    data = batch()
    for item in data:
        item["sem_seg"][:] = 0
        item["sem_seg"][:20] = 1
        item["sem_seg"][0, :5] = 2
    values = {}
    for sampled in (None, 0, 1, 2):
        torch.manual_seed(0)
        given = [item if sampled is None else {**item, "sampled_class": sampled} for item in data]
        values[sampled] = model(given)["loss_sem_seg"].item()
    assert values[None] == values[2] != values[1] != values[0], "the rarest class stands in where none was sampled"


def test_the_trainer_switches_at_the_first_cut():
    with loaded("projects/segmentation/train_net.py") as train_net:
        trainer_class = train_net.SegmentationTrainer
    model = build(config("SOLVER.GSRL.WHEN", "pruned")).train()
    trainer = SimpleNamespace(cfg=config("SOLVER.GSRL.WHEN", "pruned"), checkpointer=SimpleNamespace(plan=None))
    seen = []
    for plan in (None, object()):
        trainer.checkpointer.plan = plan
        trainer_class.losses(trainer, model, batch())
        seen.append(model.rebalanced)
    assert seen == [False, True]


AUXILIARY = ["SOLVER.AUXILIARY.FEATURE", "stage3", "SOLVER.AUXILIARY.CHANNELS", "8"]
AUXILIARY += ["MODEL.TIMM.OUT_FEATURES", "['stride4', 'stage3', 'stride16']"]
RESNET = [
    "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.NORM", "BN",
    "MODEL.RESNETS.STEM_TYPE", "basic", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res4', 'res5']", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res5']",
    "SOLVER.AUXILIARY.FEATURE", "res4", "SOLVER.AUXILIARY.CHANNELS", "8",
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "when"),
    [pytest.param(AUXILIARY, "never", marks=pytest.mark.slow, id="timm"),
     pytest.param(RESNET, "always", id="detectron2 and GSRL")],
)  # fmt: skip
def test_an_auxiliary_head_follows_a_cut_and_counts_for_nothing(change, when, tmp_path):
    change = [*change, "SOLVER.GSRL.WHEN", when]
    model, plain = build(config(*change)).eval(), build_model(config(*change)).eval()
    found, alone = find_groups(model, batch(1)), find_groups(plain, batch(1))
    assert [(g.name, g.size) for g in found] == [(g.name, g.size) for g in alone]
    assert (found.flops(), found.params()) == (alone.flops(), alone.params())
    assert found.params() == sum(p.numel() for p in plain.parameters())
    plan = plan_for(found, random_keep(found, 0))
    assert plan.branches == ("auxiliary_head",)

    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    pruned, masked = model, copy.deepcopy(model)
    apply(pruned, plan, optimizer)
    mask(masked, plan)
    assert not compare(masked, pruned, batch(1)).problem and compare(masked, pruned, batch(1)).relative < 1e-4
    feature = config(*change).SOLVER.AUXILIARY.FEATURE
    width = pruned.backbone.output_shape()[feature].channels
    assert pruned.auxiliary_head.conv.weight.shape[:2] == (8, width) != masked.auxiliary_head.conv.weight.shape[:2]
    with torch.no_grad():
        maps = [m.auxiliary_head(m.backbone(batch(1)[0]["image"][None])[feature], (64, 64)) for m in (masked, pruned)]
    torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-5)

    file = tmp_path / "pruned.safetensors"
    save(file, pruned, plan)
    assert not any("auxiliary" in name for name in read(file)[1])
    for other in (plain, build(config(*change), seed=1).eval()):
        assert load(file, other) == plan
        assert compare(other, pruned, batch(1)).relative == 0
        losses = other.train()(batch())
        sum(losses.values()).backward()
    assert losses.keys() == {"loss_sem_seg", "loss_auxiliary"}
    losses = pruned.train()(batch())
    sum(losses.values()).backward()
    optimizer.step()
    assert pruned.auxiliary_head.conv.weight.grad.any() and all(v.isfinite() for v in losses.values())


def test_the_auxiliary_loss_is_that_of_the_main_head():
    cfg = config(*AUXILIARY, "SOLVER.GSRL.WHEN", "always", "SOLVER.AUXILIARY.WEIGHT", "0.5")
    model = build(cfg).train()
    model.auxiliary_head.dropout.p = 0.0
    data, kept = batch(), {}
    model.sem_seg_head.register_forward_hook(lambda module, given, out: kept.update(main=out[0]))
    model.auxiliary_head.register_forward_hook(lambda module, given, out: kept.update(inner=out))
    losses = model(data)
    labels = torch.stack([item["sem_seg"] for item in data])
    weights = model.gsrl.weights(kept["main"], labels)
    torch.testing.assert_close(losses["loss_auxiliary"], 0.5 * model.gsrl(kept["inner"], labels, weights))


def test_mistakes_are_named():
    with pytest.raises(InputError, match="WHEN must be one of never, always, pruned, got 'sometimes'"):
        segmentation.with_supervised_segmentor(config("SOLVER.GSRL.WHEN", "sometimes"))
    with pytest.raises(InputError, match="gives no 'res4' but stride4, stride16"):
        build(config("SOLVER.AUXILIARY.FEATURE", "res4"))
    other = config("SOLVER.GSRL.WHEN", "always", "MODEL.META_ARCHITECTURE", "PanopticFPN")
    with pytest.raises(InputError, match="SemanticSegmentor"):
        segmentation.with_supervised_segmentor(other)
