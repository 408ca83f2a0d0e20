"""Registers data sets by name in Detectron2's catalogs.

As in Detectron2, registering reads no file: a data set is read and checked at its first use. Registering the same data
set again has no effect; registering another data set under a used name is an error.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from sirfp.data.classes import IGNORE
from sirfp.data.coco import CocoSet, check_coco
from sirfp.data.composition import CLASSES, SPLITS
from sirfp.data.data_set import DataSet, Split
from sirfp.data.descriptions import DATA_SETS
from sirfp.data.folders import Pair, check_classes, check_sem_seg_folder
from sirfp.data.images import open_images
from sirfp.data.location import datasets_root
from sirfp.data.remarks import log_remarks
from sirfp.data.scenes import STUFF_CLASSES, load_scenes
from sirfp.data.sets.camvid import CAMVID
from sirfp.errors import InputError, one_line

_registered: dict[str, tuple[Any, ...]] = {}
_detections: dict[str, Callable[[], CocoSet]] = {}
Records = list[dict[str, Any]]
COCO_TYPES = ("coco", "coco_panoptic_seg")
"""Detectron2's `evaluator_type` of sets whose `json_file` has COCO's detection format."""


def register_all(root: str | os.PathLike[str] | None = None) -> None:
    """Registers all data sets with a default folder below `root`; the folder need not exist yet.

    These are the sets of `descriptions.DATA_SETS` that Detectron2 does not register, and scenes_sem_seg_{train,val},
    scenes_det_{train,val}, scenes_digits_{train,val}, bccd_det_{train,val} and cifar10_{train,val}.

    Args:
        root: folder of all data sets; `datasets_root()` by default.
    """
    folder = datasets_root() if root is None else Path(root)
    register_scenes(folder / "scenes")
    for split in SPLITS:
        place = folder / "bccd"
        register_coco(f"bccd_det_{split}", place / "annotations" / f"{split}.json", place / split)
        register_images(f"cifar10_{split}", folder / "cifar10" / split)
    for known in DATA_SETS.values():
        if not known.detectron2:
            register_described(known, folder / known.folder)


def register_described(known: DataSet, folder: str | os.PathLike[str]) -> None:
    """Registers the splits of a described data set in `folder`.

    Raises:
        InputError: the name of a split belongs to another data set.
    """
    for split in known.splits:
        _register_split(known, split, Path(folder))


def _register_split(known: DataSet, split: Split, folder: Path) -> None:
    images = folder / split.image_folder
    if known.task == "classification":
        _register_images(split.registered, images, ready=partial(_need, (images,), known.name))
        return
    labels = folder / (split.labels if known.task == "detection" else os.path.dirname(split.labels))
    lists = [folder / split.listed] if split.listed else []
    ready = partial(_need, (images, labels, *lists), known.name)
    if known.task == "detection":
        _register_coco(split.registered, labels, images, known.names or None, ready, flat_boxes=True)
    else:
        _register_sem_seg(split.registered, images, labels, known.names, known.ignore, ready, *lists)


def _need(places: tuple[Path, ...], name: str) -> None:
    """Raises InputError if a file or folder of a described data set is missing."""
    missing = next((place for place in places if not place.exists()), None)
    if missing is not None:
        kind = "file" if missing.suffix else "folder"
        raise InputError(f"{missing}: no such {kind}; run: sirfp data check {name}")


def register_camvid(root: str | os.PathLike[str], prefix: str = "camvid_sem_seg") -> None:
    """Registers `<prefix>_{train,val,test}` from the folders `train`, `trainannot`, `val`, `valannot` and so on."""
    splits = tuple(replace(split, registered=f"{prefix}_{split.name}") for split in CAMVID.splits)
    register_described(replace(CAMVID, splits=splits), root)


def register_scenes(root: str | os.PathLike[str], prefix: str = "scenes") -> None:
    """Registers `<prefix>_sem_seg_{train,val}`, `<prefix>_det_...` and `<prefix>_digits_...` from one scene set.

    The masks are run-length encoded: instance segmentation needs Detectron2's `INPUT.MASK_FORMAT: bitmask`.
    """
    folder = Path(root)
    for split in SPLITS:
        images, labels = folder / split, folder / f"{split}annot"
        annotations = folder / "annotations" / f"{split}.json"
        ready = cache(lambda: load_scenes(folder))
        _register_sem_seg(f"{prefix}_sem_seg_{split}", images, labels, STUFF_CLASSES, IGNORE, ready)
        _register_coco(f"{prefix}_det_{split}", annotations, images, CLASSES, ready)
        _register_images(f"{prefix}_digits_{split}", folder / "classification" / split, ready=ready)


def register_sem_seg_folder(
    name: str,
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    classes: Sequence[str],
    ignore: int = IGNORE,
) -> None:
    """Registers a folder of images and a folder of label maps, see `folders.check_sem_seg_folder`.

    Raises:
        InputError: the classes or the ignore value are not valid, or `name` belongs to another data set.
    """
    _register_sem_seg(name, Path(images), Path(labels), tuple(classes), ignore)


def register_coco(name: str, annotations: str | os.PathLike[str], images: str | os.PathLike[str]) -> None:
    """Registers a detection set in COCO's format, see `coco.check_coco`.

    Raises:
        InputError: `name` belongs to another data set.
    """
    _register_coco(name, Path(annotations), Path(images))


def register_images(
    name: str, root: str | os.PathLike[str], reader: str = "", split: str = "", class_map: str = ""
) -> None:
    """Registers a set of labelled images for classification, see `images.open_images`.

    Raises:
        InputError: `name` belongs to another data set.
    """
    _register_images(name, Path(root), reader, split, class_map)


def detections(name: str) -> CocoSet | None:
    """Summarises a registered set in COCO's format, which is read and checked once; None for other formats.

    Raises:
        FileNotFoundError: the annotations of a set that sirfp has not registered are missing.
        InputError: see `coco.check_coco`.
    """
    from detectron2.data import MetadataCatalog

    if name not in _detections:
        known = MetadataCatalog.get(name)
        annotations, images = known.get("json_file"), known.get("image_root")
        if known.get("evaluator_type") not in COCO_TYPES or not annotations or not images or "://" in annotations:
            return None
        if not Path(annotations).is_file():
            raise FileNotFoundError(f"there is no file of annotations {annotations}")
        classes = known.get("thing_classes")
        count = None if classes is None else len(classes)
        _detections[name] = cache(partial(check_coco, annotations, images, count, flat_boxes=True))
    return _detections[name]()


def _register_images(
    name: str,
    root: Path,
    reader: str = "",
    split: str = "",
    class_map: str = "",
    ready: Callable[[], object] = lambda: None,
) -> None:
    source = {"root": str(root), "reader": reader, "split": split, "class_map": class_map}

    def load() -> Any:
        ready()
        return open_images(root, reader, split=split, class_map=class_map)

    _register(name, load, {"evaluator_type": "classification", "images": source})


def _register_sem_seg(
    name: str,
    images: Path,
    labels: Path,
    classes: tuple[str, ...],
    ignore: int,
    ready: Callable[[], object] = lambda: None,
    listed: Path | str = "",
) -> None:
    check_classes(classes, ignore)

    @cache
    def pairs() -> list[Pair]:
        ready()
        found = check_sem_seg_folder(images, labels, classes, ignore, listed=listed)
        log_remarks(name, found.remarks)
        return found

    def load() -> Records:
        return [
            {
                "file_name": str(pair.image),
                "sem_seg_file_name": str(pair.label),
                "image_id": pair.image.stem,
                "height": pair.height,
                "width": pair.width,
            }
            for pair in pairs()
        ]

    metadata = {
        "evaluator_type": "sem_seg",
        "image_root": str(images),
        "sem_seg_root": str(labels),
        "stuff_classes": list(classes),
        "ignore_label": ignore,
        **({"listed": str(listed)} if listed else {}),
    }
    _register(name, load, metadata)


def _register_coco(
    name: str,
    annotations: Path,
    images: Path,
    classes: tuple[str, ...] | None = None,
    ready: Callable[[], object] = lambda: None,
    flat_boxes: bool = False,
) -> None:
    @cache
    def checked() -> CocoSet:
        ready()
        count = None if classes is None else len(classes)
        found = check_coco(annotations, images, count, flat_boxes=flat_boxes)
        log_remarks(name, found.remarks)
        return found

    def load() -> Records:
        checked()
        return coco_records(annotations, images, name)

    metadata: dict[str, Any] = {"evaluator_type": "coco", "image_root": str(images), "json_file": str(annotations)}
    if classes is not None:
        metadata["thing_classes"] = list(classes)
    if _register(name, load, metadata):
        _detections[name] = checked


def coco_records(annotations: Path, images: Path, name: str) -> Records:
    """Reads a checked file of annotations by Detectron2; returns its records.

    Raises:
        InputError: Detectron2 cannot read the file, e.g. because keypoints are not a list.
    """
    from detectron2.data.datasets import load_coco_json

    try:
        return load_coco_json(str(annotations), str(images), name)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        reason = one_line(error, 160)
        raise InputError(f"{annotations}: is not fully in COCO's format ({type(error).__name__}: {reason})") from None


def _register(name: str, load: Callable[[], Any], metadata: dict[str, Any]) -> bool:
    """Registers a set in Detectron2's catalogs; returns False if the same set was registered before."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    content = tuple(metadata.items())
    if name in DatasetCatalog:
        if _registered.get(name) != content:
            raise InputError(f"{name}: this name already belongs to another data set; choose another name")
        return False
    if _registered.pop(name, None) is not None and name in MetadataCatalog:
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    _registered[name] = content
    return True
