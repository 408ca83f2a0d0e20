"""Converts a data set's record to an input of a segmentor, with random scale, crop, flip and colour for training."""

from __future__ import annotations

from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import check_image_size

from sirfp.data.folders import read_label
from sirfp.data.pixels import check_channels, read_pixels


class SegmentationMapper:
    """Maps a record to a new one with "image" (C, H, W) uint8 and, for training, "sem_seg" (H, W) int64.

    Training images are randomly scaled (`INPUT.MIN_SIZE_TRAIN`), then cropped and padded to `INPUT.TRAIN_SIZE`. The
    data set's ignore value is replaced by the head's, so that configs need not set it.

    Args:
        cfg: the whole config.
        is_train: True for labels and random augmentation; False for the image alone, resized to `INPUT.MIN_SIZE_TEST`
            (0: not resized).
    """

    def __init__(self, cfg: CfgNode, is_train: bool):
        self.is_train = is_train
        self.format = cfg.INPUT.FORMAT
        check_channels(self.format, len(cfg.MODEL.PIXEL_MEAN))
        self.ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        self.ignored = sorted({MetadataCatalog.get(name).get("ignore_label", 255) for name in names})
        self.augmentations = T.AugmentationList(augmentation(cfg, is_train))

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        record = dict(record)
        image = read_pixels(record["file_name"], self.format)
        check_image_size(record, image)
        label_file = record.pop("sem_seg_file_name", None)
        label = None
        if self.is_train:
            label = read_label(label_file, np.int32)
            label = np.where(np.isin(label, self.ignored), self.ignore, label)
            label = label.astype(np.uint8 if label.max() <= 255 else np.float32)  # types that resizing supports
        given = T.AugInput(image, sem_seg=label)
        self.augmentations(given)
        record["image"] = torch.from_numpy(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        if self.is_train:
            record["sem_seg"] = torch.from_numpy(np.ascontiguousarray(given.sem_seg)).long()
        return record


def augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """The augmentations of an image and its label map, in order."""
    node = cfg.INPUT
    if not is_train:
        return [T.ResizeShortestEdge(node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, "choice")]
    ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    size = tuple(node.TRAIN_SIZE)
    scale = T.ResizeShortestEdge(node.MIN_SIZE_TRAIN, node.MAX_SIZE_TRAIN, node.MIN_SIZE_TRAIN_SAMPLING)
    largest = node.CROP.SINGLE_CATEGORY_MAX_AREA
    steps = [
        scale,
        T.RandomCrop_CategoryAreaConstraint("absolute", size, largest, ignore),
        T.FixedSizeCrop(size, pad=True, seg_pad_value=ignore),
    ]
    if node.RANDOM_FLIP != "none":
        steps.append(T.RandomFlip(horizontal=node.RANDOM_FLIP == "horizontal", vertical=node.RANDOM_FLIP == "vertical"))
    if node.COLOR_JITTER:
        low, high = 1 - node.COLOR_JITTER, 1 + node.COLOR_JITTER
        steps += [kind(low, high) for kind in (T.RandomBrightness, T.RandomContrast, ColourSaturation)]
    return steps


class ColourSaturation(T.RandomSaturation):
    """Random saturation of images of three channels; others have no saturation and are left as they are."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Returns the transform of an image (H, W, C)."""
        return super().get_transform(image) if image.shape[-1] == 3 else T.NoOpTransform()
