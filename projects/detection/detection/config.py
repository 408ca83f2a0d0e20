"""Checks that a detector fits its data, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import getitem

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from sirfp.engine import reading_data
from sirfp.errors import InputError

NUM_CLASSES = {
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "FCOS": "MODEL.FCOS.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}
"""The config key that says the number of classes, by meta-architecture."""


def check_data(cfg: CfgNode) -> None:
    """Checks each data set against the config.

    Raises:
        InputError: the number of classes is not the data's, or the config asks for masks that the data lack.
    """
    key = NUM_CLASSES.get(cfg.MODEL.META_ARCHITECTURE)
    asked = None if key is None else reduce(getitem, key.split("."), cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        there = len(classes(name))
        if asked is not None and there != asked:
            raise InputError(f"{key} is {asked}, data set {name!r} has {there} classes; set it to {there}")
        if cfg.MODEL.MASK_ON and not _has_masks(name):
            raise InputError(f"MODEL.MASK_ON is True, data set {name!r} has no segmentations; set it to False")


def classes(name: str) -> Sequence[str]:
    """Names of a data set's classes; the set is read where they are not known before."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        with reading_data([name]):
            DatasetCatalog.get(name)
    found = metadata.get("thing_classes")
    if found is None:
        raise InputError(f"data set {name!r} is not for detection: it has no thing_classes")
    return found


def _has_masks(name: str) -> bool:
    metadata = MetadataCatalog.get(name)
    if metadata.get("has_masks") is None:
        with reading_data([name]):
            records = DatasetCatalog.get(name)
        metadata.has_masks = any("segmentation" in box for record in records for box in record.get("annotations", ()))
    return metadata.has_masks
