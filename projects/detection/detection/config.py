"""Checks that a detector fits its data, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import getitem

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from sirfp.config.metrics import check_metrics
from sirfp.data.classes import check_same_classes
from sirfp.data.pixels import check_channels
from sirfp.data.reading import reading_data
from sirfp.data.registration import detections
from sirfp.errors import InputError

NUM_CLASSES = {
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "FCOS": "MODEL.FCOS.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}
"""{meta-architecture: config key for the number of classes}."""


def check_data(cfg: CfgNode, names: Sequence[str]) -> None:
    """Checks each data set, and compares it with the config and with the first data set.

    Raises:
        InputError: one of these faults is found:

            - INPUT.FORMAT and MODEL.PIXEL_MEAN differ in their number of channels;
            - a data set has a mistake;
            - its number of classes differs from the config's, or its classes from the first data set's;
            - it lacks the masks or keypoints that the config needs.
    """
    check_metrics(cfg, "detection")
    check_channels(cfg.INPUT.FORMAT, len(cfg.MODEL.PIXEL_MEAN))
    key = NUM_CLASSES.get(cfg.MODEL.META_ARCHITECTURE)
    asked = None if key is None else reduce(getitem, key.split("."), cfg)
    classes: dict[str, Sequence[str]] = {}
    for name in names:
        with reading_data([name]):
            there, masks = contents(name)
        if asked is not None and len(there) != asked:
            raise InputError(f"{key} is {asked}, data set {name!r} has {len(there)} classes; set it to {len(there)}")
        classes[name] = there
        check_same_classes(classes, "give them the same categories in the order of their ids")
        if cfg.MODEL.MASK_ON:
            _check_masks(name, masks, cfg.INPUT.MASK_FORMAT)
        if cfg.MODEL.KEYPOINT_ON and MetadataCatalog.get(name).get("keypoint_names") is None:
            raise InputError(
                f"MODEL.KEYPOINT_ON is True, data set {name!r} has no keypoint_names; register it in Python with "
                "keypoint_names and keypoint_flip_map, or set it to False"
            )


def contents(name: str) -> tuple[Sequence[str], frozenset[str]]:
    """Returns the names of a data set's classes and the forms of its masks (see `sirfp.data.coco.CocoSet`)."""
    found = detections(name)
    if found is not None:
        return found.classes, found.masks
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        raise InputError(f"data set {name!r} is not for detection: it has no thing_classes")
    masks = [box.get("segmentation") for record in records for box in record.get("annotations", ())]
    forms = {"none" if not mask else "bitmask" if isinstance(mask, dict) else "polygon" for mask in masks}
    return metadata.thing_classes, frozenset(forms)


def _check_masks(name: str, forms: frozenset[str], mask_format: str) -> None:
    if forms <= {"none"}:
        raise InputError(f"MODEL.MASK_ON is True, data set {name!r} has no segmentations; set it to False")
    if "none" in forms:
        raise InputError(
            f"MODEL.MASK_ON is True, objects of data set {name!r} lack a segmentation; add them or set it to False"
        )
    if "bitmask" in forms and mask_format != "bitmask":
        raise InputError(
            f"INPUT.MASK_FORMAT is {mask_format!r}, data set {name!r} has run-length encoded masks; set it to bitmask"
        )
