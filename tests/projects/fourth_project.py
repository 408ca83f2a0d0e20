"""A fourth task in a user's own folder: to predict which share of an image is bright."""

from __future__ import annotations

from pathlib import Path

TRAIN_NET = '''
import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from sirfp.config import register_config
from sirfp.engine import Trainer, run


@register_config("share")
def add_share_config(cfg):
    cfg.MODEL.SHARE = CfgNode()
    cfg.MODEL.SHARE.WIDTH = 16  # channels of the hidden layers


@META_ARCH_REGISTRY.register()
class ShareNet(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width = cfg.MODEL.SHARE.WIDTH
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1),
        )

    @property
    def device(self):
        return self.layers[0].weight.device

    def forward(self, inputs):
        images = torch.stack([one["image"].to(self.device).float() / 255 for one in inputs])
        shares = self.layers(images).squeeze(1)
        if not self.training:
            return [{"share": share} for share in shares]
        wanted = torch.stack([(one["sem_seg"] == 0).float().mean() for one in inputs]).to(self.device)
        return {"loss_share": (shares - wanted).square().mean()}


if __name__ == "__main__":
    run(Trainer)
'''
CONFIG = """
PROJECT: share
MODEL:
  META_ARCHITECTURE: ShareNet
  SHARE:
    WIDTH: 8
DATASETS:
  TRAIN: ("squares_train",)
  TEST: ()
  FOLDER:
    NAME: squares
    CLASSES: [bright, dark]
    IGNORE: 9
    TRAIN_IMAGES: images
    TRAIN_LABELS: labels
INPUT:
  MIN_SIZE_TRAIN: (64,)
  MIN_SIZE_TEST: 64
SOLVER:
  IMS_PER_BATCH: 2
  MAX_ITER: 2
  BASE_LR: 0.01
  WARMUP_ITERS: 0
DATALOADER:
  NUM_WORKERS: 0
SIRFP:
  CRITERION: magnitude
  KEEP_FLOPS: 0.5
  ACCUMULATE_ITERS: 1
  ACCUMULATE_PERIOD: 1
  HOOKS: [Accumulate, Report, PruneSteps]
OUTPUT_DIR: out
"""
PARTS = '''
"""A criterion, and a hook with a config key of its own."""
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from sirfp.config import register_config
from sirfp.criteria import Criterion
from sirfp.criteria.registry import register
from sirfp.hooks import HOOKS


@register("first")
class First(Criterion):
    def scores(self):
        return {group.name: -torch.arange(group.size).float() for group in self.groups}


@register_config()
def add_note_config(cfg):
    cfg.SIRFP.NOTE = "unchanged"


@HOOKS.register()
class Note(HookBase):
    def __init__(self, cfg):
        self.file = Path(cfg.OUTPUT_DIR) / f"note_{comm.get_rank()}.txt"
        self.text = cfg.SIRFP.NOTE

    def after_train(self):
        self.file.write_text(self.text)
'''


def make_project(root: Path) -> Path:
    """Writes `share/train_net.py`, `share/configs/squares.yaml` and `parts.py`, which the project does not know."""
    (root / "share/configs").mkdir(parents=True)
    (root / "share/train_net.py").write_text(TRAIN_NET)
    (root / "share/configs/squares.yaml").write_text(CONFIG)
    (root / "parts.py").write_text(PARTS)
    return root
