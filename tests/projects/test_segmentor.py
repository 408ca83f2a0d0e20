"""The supervised segmentor is Detectron2's but for its losses; the trainer switches them at the first cut."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model

from sirfp.config import load_config
from sirfp.errors import InputError

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
    return load_config(PROJECT / "configs/Base-DeepLabV3Plus-timm.yaml", options, segmentation.add_segmentation_config)


def build(cfg, seed: int = 0):
    torch.manual_seed(seed)
    return build_model(segmentation.supervised(cfg))


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
    spec = importlib.util.spec_from_file_location("segmentation_train_net", PROJECT / "train_net.py")
    train_net = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train_net)
    model = build(config("SOLVER.GSRL.WHEN", "pruned")).train()
    trainer = SimpleNamespace(cfg=config("SOLVER.GSRL.WHEN", "pruned"), checkpointer=SimpleNamespace(plan=None))
    seen = []
    for plan in (None, object()):
        trainer.checkpointer.plan = plan
        train_net.SegmentationTrainer.losses(trainer, model, batch())
        seen.append(model.rebalanced)
    assert seen == [False, True]


def test_mistakes_are_named():
    with pytest.raises(InputError, match="WHEN must be one of never, always, pruned, got 'sometimes'"):
        segmentation.supervised(config("SOLVER.GSRL.WHEN", "sometimes"))
    other = config("SOLVER.GSRL.WHEN", "always", "MODEL.META_ARCHITECTURE", "PanopticFPN")
    with pytest.raises(InputError, match="SemanticSegmentor"):
        segmentation.supervised(other)
