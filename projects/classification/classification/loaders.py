"""timm's loaders of labelled images, with augmentation, mixup and cutmix, and endless batches for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from timm.data import FastCollateMixup, create_loader
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sirfp.data.images import check_images, open_images
from sirfp.data.remarks import log_remarks
from sirfp.data.stream import BATCH, ITEM, Shuffled, TrainingStream, seed_all
from sirfp.errors import InputError

from .inputs import image_channels, preprocessing
from .policies import patch_policies

Batch = tuple[torch.Tensor, torch.Tensor]


class SeededImages(Dataset):
    """Seeds the augmentation of each image by the run's seed, the epoch and the image's index.

    Args:
        images: timm's data set.
        seed: seed of the run.
    """

    def __init__(self, images: Any, seed: int):
        self.images, self.seed, self.epoch = images, seed, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        seed_all(self.seed, ITEM, self.epoch, index)
        return self.images[index]

    @property
    def transform(self) -> Any:
        return self.images.transform

    @transform.setter
    def transform(self, transform: Any) -> None:  # timm sets the transform
        self.images.transform = transform


class SeededErasing:
    """Random erasing of whole batches on the device, as in timm, with a separate seed per batch.

    Args:
        erase: timm's random erasing of images (N, C, H, W).
        seed: seed of the run.
        done: number of batches so far.
    """

    def __init__(self, erase: Callable[[torch.Tensor], torch.Tensor], seed: int, done: int):
        self.erase, self.seed, self.done = erase, seed, done

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        seed_all(self.seed, BATCH, self.done, comm.get_rank())
        self.done += 1
        return self.erase(images)


def endless(loader: Any, seed: int, skip: int, unmixed_after: int = 0, classes: int = 0) -> Iterator[Batch]:
    """Repeats a loader's epochs: batches of images (N, C, H, W) and labels (N,), or (N, classes) if mixed.

    Args:
        loader: one of timm's loaders.
        seed: seed of the order.
        skip: number of batches to skip; ignored by streaming readers, which start from the beginning.
        unmixed_after: number of batches after which mixup and cutmix end; 0: never.
        classes: number of classes of the network, for streaming readers, which do not tell that of the data; 0: any.

    Raises:
        InputError: a label of a streaming reader is too large.
    """
    images = loader.dataset
    order = None
    epoch, done = 0, skip
    if isinstance(images, SeededImages):
        batches = _torch_loader(loader).batch_sampler
        order = batches.sampler = Shuffled(len(images), seed)
        images.seed = seed
        batch = batches.batch_size
        epoch, passed = divmod(skip, len(order) // batch)
        order.skip = passed * batch
    if getattr(loader, "random_erasing", None) is not None:
        loader.random_erasing = SeededErasing(loader.random_erasing, seed, skip)
    while True:
        if order is not None:
            order.epoch = images.epoch = epoch
        elif hasattr(images, "set_epoch"):
            images.set_epoch(epoch)
        begun = done if order is None else epoch * (len(order) // batch)
        if unmixed_after and begun >= unmixed_after:
            loader.mixup_enabled = False
        for pictures, labels in loader:
            done += 1
            if order is None and classes and labels.dim() == 1 and int(labels.max()) >= classes:
                raise InputError(
                    f"MODEL.CLASSIFIER.NUM_CLASSES is {classes}, but a training image has label {int(labels.max())}, "
                    "counted from 0; set it to the data set's number of classes"
                )
            yield pictures.contiguous(memory_format=torch.channels_last), labels
        epoch += 1
        if order is not None:
            order.skip = 0


def train_loader(cfg: CfgNode) -> TrainingStream:
    """Makes augmented training batches; SOLVER.IMS_PER_BATCH is the total batch size of all processes.

    Raises:
        InputError: there is more than one training set, or the training set is smaller than a batch or unreadable.
    """
    node, augment = cfg.SOLVER, cfg.INPUT.AUGMENT
    if len(cfg.DATASETS.TRAIN) != 1:
        raise InputError(f"DATASETS.TRAIN: classification trains on one data set, got {len(cfg.DATASETS.TRAIN)}")
    batch = node.IMS_PER_BATCH // comm.get_world_size()
    images = open_images(
        **MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).images, training=True, batch_size=batch, seed=max(cfg.SEED, 0),
        channels=image_channels(cfg),
    )  # fmt: skip
    log_remarks(cfg.DATASETS.TRAIN[0], check_images(images))
    if len(images) < node.IMS_PER_BATCH:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {node.IMS_PER_BATCH}, the training set has {len(images)} images")
    if not isinstance(images, IterableDataset):
        images = SeededImages(images, cfg.SEED)
    collate = None
    if augment.MIXUP or augment.CUTMIX:
        collate = FastCollateMixup(
            mixup_alpha=augment.MIXUP,
            cutmix_alpha=augment.CUTMIX,
            label_smoothing=cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING,
            num_classes=cfg.MODEL.CLASSIFIER.NUM_CLASSES,
        )
    patch_policies()
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
        **_loader_options(cfg),
    )
    unmixed_after = augment.MIX_OFF_ITER if collate else 0
    return TrainingStream(
        lambda seed, skip: endless(loader, seed, skip, unmixed_after, cfg.MODEL.CLASSIFIER.NUM_CLASSES), cfg.SEED
    )


def test_loader(cfg: CfgNode, name: str) -> Any:
    """Makes batches of the whole test set, in order."""
    batch = max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1)
    how = preprocessing(cfg)
    images = open_images(**MetadataCatalog.get(name).images, batch_size=batch, channels=how["input_size"][0])
    loader = create_loader(
        images,
        input_size=how["input_size"],
        batch_size=batch,
        is_training=False,
        interpolation=how["interpolation"],
        mean=how["mean"],
        std=how["std"],
        crop_pct=how["crop_pct"],
        crop_mode=how["crop_mode"],
        **_loader_options(cfg),
    )
    if not isinstance(images, IterableDataset):  # timm's sampler repeats images, for equal numbers per process
        _torch_loader(loader).batch_sampler.sampler = InferenceSampler(len(images))
    return loader


def _torch_loader(loader: Any) -> DataLoader:
    """PyTorch's loader; timm's prefetching loader wraps it, and exposes its sampler only from timm 1.0.29 on."""
    return getattr(loader, "loader", loader)


def _loader_options(cfg: CfgNode) -> dict[str, Any]:
    """timm's options for worker processes and for the device of batches."""
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
