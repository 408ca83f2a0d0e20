"""A fourth task in a user's own folder, that of docs/extending.md: to predict which share of an image is bright."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/extending.md"
TRAIN_NET = PAGE.read_text(encoding="utf-8").partition("```python\n# share/train_net.py\n")[2].partition("```")[0]
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
