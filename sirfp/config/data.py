"""Registers the data sets that a config names or describes."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..errors import InputError, near


def register_data(cfg: CfgNode) -> None:
    """Registers sirfp's data sets and those of DATASETS.{FOLDER,IMAGES,COCO}; checks the names of all used data sets.

    Afterwards Detectron2's mappers read 16-bit images too (`sirfp.data.pixels`).

    Raises:
        InputError: a name in DATASETS.TRAIN or DATASETS.TEST is unknown, or DATASETS.FOLDER is incomplete.
    """
    from detectron2.data import DatasetCatalog

    from ..data.pixels import provide_depth
    from ..data.registration import register_all, register_coco, register_images, register_sem_seg_folder

    provide_depth()
    register_all()
    own = cfg.DATASETS.FOLDER
    used = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for split in ("train", "test"):
        name = f"{own.NAME}_{split}"
        images, labels = own[f"{split.upper()}_IMAGES"], own[f"{split.upper()}_LABELS"]
        if own.CLASSES and images and labels:
            register_sem_seg_folder(name, images, labels, tuple(own.CLASSES), own.IGNORE)
        elif name in used and name not in DatasetCatalog:
            raise InputError(
                f"data set {name!r}: set DATASETS.FOLDER.CLASSES, DATASETS.FOLDER.{split.upper()}_IMAGES and "
                f"DATASETS.FOLDER.{split.upper()}_LABELS"
            )
    labelled = cfg.DATASETS.IMAGES
    for split, part in zip(("train", "test"), labelled.SPLITS, strict=False):
        if labelled[split.upper()]:
            root = labelled[split.upper()]
            register_images(f"{labelled.NAME}_{split}", root, labelled.READER, part, labelled.CLASS_MAP)
    boxes = cfg.DATASETS.COCO
    for split in ("train", "test"):
        annotations, images = boxes[f"{split.upper()}_ANNOTATIONS"], boxes[f"{split.upper()}_IMAGES"]
        if annotations or images:
            register_coco(f"{boxes.NAME}_{split}", annotations, images)
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                places = "Detectron2, sirfp or DATASETS.{FOLDER,IMAGES,COCO}"
                hint = near(name, DatasetCatalog.list()) or f"; data sets are defined by {places}"
                raise InputError(f"DATASETS.{key}: there is no data set {name!r}{hint}")
    _check_own_is_used(cfg, used)


def _check_own_is_used(cfg: CfgNode, used: tuple[str, ...]) -> None:
    """Raises InputError if a data set of one's own is described and no split of it is used."""
    for block, keys in (
        ("FOLDER", ("TRAIN_IMAGES", "TEST_IMAGES")),
        ("IMAGES", ("TRAIN", "TEST")),
        ("COCO", ("TRAIN_ANNOTATIONS", "TEST_ANNOTATIONS")),
    ):
        own = cfg.DATASETS[block]
        if any(own[key] for key in keys) and not {f"{own.NAME}_train", f"{own.NAME}_test"} & set(used):
            named = ", ".join(cfg.DATASETS.TRAIN) or "nothing"
            raise InputError(
                f"DATASETS.{block} is filled in, but DATASETS.TRAIN names {named}; "
                f"set DATASETS.TRAIN \"('{own.NAME}_train',)\" DATASETS.TEST \"('{own.NAME}_test',)\""
            )
