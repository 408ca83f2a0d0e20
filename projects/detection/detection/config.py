"""Checks that a detector fits its data, before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from operator import getitem
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from sirfp.config.metrics import check_metrics
from sirfp.data.classes import check_same_classes
from sirfp.data.pixels import check_channels
from sirfp.data.reading import reading_data
from sirfp.data.registration import detections
from sirfp.errors import InputError

Records = Callable[[], list[dict[str, Any]]]
"""Returns Detectron2's records of a data set."""
NUM_CLASSES = {
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "FCOS": "MODEL.FCOS.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}
"""{meta-architecture: config key for the number of classes}."""
PERSON = 17
"""The number of COCO's keypoints, whose sigmas are used where TEST.KEYPOINT_OKS_SIGMAS is empty."""


def check_data(cfg: CfgNode, names: Sequence[str]) -> None:
    """Checks each data set, and compares it with the config and with the first data set.

    Raises:
        InputError: one of these faults is found:

            - INPUT.FORMAT and MODEL.PIXEL_MEAN differ in their number of channels;
            - a data set has a mistake;
            - its number of classes differs from the config's, or its classes from the first data set's;
            - it lacks the masks, keypoints or label maps that the config needs;
            - the network is a segmentor.
    """
    check_metrics(cfg, "detection")
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
        raise InputError("MODEL.META_ARCHITECTURE SemanticSegmentor is trained by projects/segmentation/train_net.py")
    check_channels(cfg.INPUT.FORMAT, len(cfg.MODEL.PIXEL_MEAN))
    key = NUM_CLASSES.get(cfg.MODEL.META_ARCHITECTURE)
    asked = None if key is None else reduce(getitem, key.split("."), cfg)
    classes: dict[str, Sequence[str]] = {}
    for name in names:
        records = cache(partial(DatasetCatalog.get, name))  # read once, where a check needs them
        with reading_data([name]):
            there, masks = contents(name, records)
        if asked is not None and len(there) != asked:
            raise InputError(f"{key} is {asked}, data set {name!r} has {len(there)} classes; set it to {len(there)}")
        classes[name] = there
        check_same_classes(classes, "give them the same categories in the order of their ids")
        if cfg.MODEL.MASK_ON:
            _check_masks(name, masks, cfg.INPUT.MASK_FORMAT)
        if cfg.MODEL.KEYPOINT_ON:
            _check_keypoints(cfg, name, records)
        if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and name in cfg.DATASETS.TRAIN:
            _check_stuff(name, records, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)


def contents(name: str, records: Records) -> tuple[Sequence[str], frozenset[str]]:
    """Returns the names of a data set's classes and the forms of its masks (see `sirfp.data.coco.CocoSet`)."""
    found = detections(name)
    if found is not None:
        return found.classes, found.masks
    read, metadata = records(), MetadataCatalog.get(name)  # some sets learn their metadata when they are read
    if metadata.get("thing_classes") is None:
        raise InputError(f"data set {name!r} is not for detection: it has no thing_classes")
    masks = [box.get("segmentation") for record in read for box in record.get("annotations", ())]
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


def _check_stuff(name: str, records: Records, classes: int) -> None:
    """Checks that a data set has the label maps of a panoptic network, as those of Detectron2's `..._separated` sets.

    Raises:
        InputError: there are no label maps, or the number of their classes differs from the config's.
    """
    stuff = MetadataCatalog.get(name).get("stuff_classes")
    with reading_data([name]):
        whole = stuff is not None and all("sem_seg_file_name" in record for record in records())
    if not whole:
        raise InputError(
            f"MODEL.META_ARCHITECTURE is PanopticFPN, data set {name!r} has no label maps; register it in Python by "
            "Detectron2's register_coco_panoptic_separated, or train another network"
        )
    if len(stuff) != classes:
        key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"
        there = len(stuff)
        raise InputError(f"{key} is {classes}, data set {name!r} has {there} stuff classes; set it to {there}")


def _check_keypoints(cfg: CfgNode, name: str, records: Records) -> None:
    names = MetadataCatalog.get(name).get("keypoint_names")
    if names is None:
        raise InputError(
            f"MODEL.KEYPOINT_ON is True, data set {name!r} has no keypoint_names; register it in Python with "
            "keypoint_names and keypoint_flip_map, or set it to False"
        )
    count, sigmas = len(names), len(cfg.TEST.KEYPOINT_OKS_SIGMAS) or PERSON
    key, asked = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if asked != count:
        raise InputError(f"{key} is {asked}, data set {name!r} has {count} keypoints; set it to {count}")
    if name in cfg.DATASETS.TEST and sigmas != count:
        raise InputError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {sigmas} values, data set {name!r} has {count} keypoints; give one "
            "value per keypoint, such as 0.05"
        )
    with reading_data([name]):
        read = records()
    for record in read:
        for one in record.get("annotations", ()):
            found = one.get("keypoints", ())
            if len(found) != 3 * count and not one.get("iscrowd", 0):
                raise InputError(
                    f"data set {name!r}: an object of {record['file_name']} has {len(found)} numbers as keypoints, "
                    f"{count} keypoints have {3 * count}: x, y and visibility of each; zeros for those not labelled"
                )
