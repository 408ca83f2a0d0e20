"""timm's loaders of labelled images: augmentation, mixing of images, and batches without end for training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from timm.data import FastCollateMixup, create_loader

from sirfp.data.images import open_images
from sirfp.errors import InputError
from sirfp.models.classifier import preprocessing

Batch = tuple[torch.Tensor, torch.Tensor]


class Endless:
    """Epoch after epoch of a loader: batches of images (N, 3, H, W) and labels (N,) or, where mixed, (N, classes).

    Args:
        loader: one of timm's.
        unmixed_after: batches after which images are mixed no longer; 0: never.
    """

    def __init__(self, loader: Any, unmixed_after: int = 0):
        self.loader, self.unmixed_after = loader, unmixed_after

    def __iter__(self) -> Iterator[Batch]:
        epoch = done = 0
        while True:
            for part in (getattr(self.loader, "sampler", None), self.loader.dataset):
                if hasattr(part, "set_epoch"):
                    part.set_epoch(epoch)
            if self.unmixed_after and done >= self.unmixed_after:
                self.loader.mixup_enabled = False
            for images, labels in self.loader:
                done += 1
                yield images.contiguous(memory_format=torch.channels_last), labels
            epoch += 1


def train_loader(cfg: CfgNode) -> Endless:
    """Augmented training batches, SOLVER.IMS_PER_BATCH images over all processes.

    Raises:
        InputError: there is more than one training set, or fewer images than one batch.
    """
    node, augment = cfg.SOLVER, cfg.INPUT.AUGMENT
    if len(cfg.DATASETS.TRAIN) != 1:
        raise InputError(f"DATASETS.TRAIN: classification trains on one data set, got {len(cfg.DATASETS.TRAIN)}")
    batch = node.IMS_PER_BATCH // comm.get_world_size()
    images = open_images(
        **MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).images, training=True, batch_size=batch, seed=max(cfg.SEED, 0)
    )
    if len(images) < node.IMS_PER_BATCH:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {node.IMS_PER_BATCH}, the training set has {len(images)} images")
    collate = None
    if augment.MIXUP or augment.CUTMIX:
        collate = FastCollateMixup(
            mixup_alpha=augment.MIXUP,
            cutmix_alpha=augment.CUTMIX,
            label_smoothing=cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING,
            num_classes=cfg.MODEL.CLASSIFIER.NUM_CLASSES,
        )
    how = preprocessing(cfg)
    side = cfg.INPUT.SIZE or how["input_size"][-1]
    loader = create_loader(
        images,
        input_size=(how["input_size"][0], side, side),
        batch_size=batch,
        is_training=True,
        scale=tuple(augment.SCALE),
        ratio=tuple(augment.RATIO),
        hflip=augment.FLIP,
        color_jitter=augment.COLOR_JITTER,
        auto_augment=augment.POLICY or None,
        re_prob=augment.ERASE,
        re_mode="pixel",
        interpolation=how["interpolation"],
        mean=how["mean"],
        std=how["std"],
        collate_fn=collate,
        **_running(cfg),
    )
    return Endless(loader, augment.MIX_OFF_ITER if collate else 0)


def test_loader(cfg: CfgNode, name: str) -> Any:
    """Batches of a whole test set, in order."""
    batch = max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1)
    how = preprocessing(cfg)
    return create_loader(
        open_images(**MetadataCatalog.get(name).images, batch_size=batch),
        input_size=how["input_size"],
        batch_size=batch,
        is_training=False,
        interpolation=how["interpolation"],
        mean=how["mean"],
        std=how["std"],
        crop_pct=how["crop_pct"],
        crop_mode=how["crop_mode"],
        **_running(cfg),
    )


def _running(cfg: CfgNode) -> dict[str, Any]:
    """What says where batches are made and where they go."""
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", comm.get_local_rank())
    workers = cfg.DATALOADER.NUM_WORKERS
    return {
        "num_workers": workers,
        "persistent_workers": False,
        "distributed": comm.get_world_size() > 1,
        "device": device,
        "pin_memory": device.type == "cuda",
    }
