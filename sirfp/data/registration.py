"""Data sets under names in Detectron2's catalogs.

As in Detectron2, registering reads nothing: a set is read, and checked, when it is first asked for.
Registering the same thing again does nothing; a name that already stands for something else is an error.
"""

import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from sirfp.data.classes import CAMVID_CLASSES, CAMVID_VOID, IGNORE
from sirfp.data.coco import CocoSet, check_coco
from sirfp.data.composition import CLASSES, SPLITS
from sirfp.data.descriptions import DATA_SETS, DataSet
from sirfp.data.folders import Pair, check_classes, check_sem_seg_folder
from sirfp.data.images import open_images
from sirfp.data.location import datasets_root
from sirfp.data.scenes import STUFF_CLASSES, load_scenes
from sirfp.errors import InputError, one_line

_registered: dict[str, tuple[Any, ...]] = {}
_detections: dict[str, Callable[[], CocoSet]] = {}
Records = list[dict[str, Any]]
COCO_TYPES = ("coco", "coco_panoptic_seg")
"""What Detectron2 calls the evaluation of sets whose `json_file` is of COCO's detection format."""


def register_all(root: str | os.PathLike[str] | None = None) -> None:
    """Registers every set that has a default place under `root`, whether it is there or not.

    camvid_sem_seg_{train,val,test}, scenes_sem_seg_{train,val}, scenes_det_{train,val}, scenes_digits_{train,val},
    bccd_det_{train,val}, cifar10_{train,val}, imagenet_{train,val}, coco_stuff_10k_sem_seg_{train,test},
    pascal_context_59_sem_seg_{train,val}.

    Args:
        root: folder of all data sets; `datasets_root()` by default.
    """
    folder = datasets_root() if root is None else Path(root)
    register_camvid(folder / "camvid")
    register_scenes(folder / "scenes")
    for split in SPLITS:
        place = folder / "bccd"
        register_coco(f"bccd_det_{split}", place / "annotations" / f"{split}.json", place / split)
        for name in ("cifar10", "imagenet"):
            register_images(f"{name}_{split}", folder / name / split)
    for name in ("coco_stuff_10k", "pascal_context"):
        register_listed(DATA_SETS[name], folder / DATA_SETS[name].folder)


def register_listed(known: DataSet, folder: str | os.PathLike[str]) -> None:
    """Registers the splits of a described segmentation set whose images share a folder, by their lists."""
    for split in known.splits:
        images, labels = (Path(folder) / os.path.dirname(place) for place in (split.images, split.labels))
        listed = Path(folder) / split.listed
        ready = partial(_need, (images, labels, listed), known.name)
        _register_sem_seg(split.registered, images, labels, known.names, known.ignore, ready, listed)


def _need(places: tuple[Path, ...], name: str) -> None:
    missing = next((place for place in places if not place.exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: is not there; run: sirfp data check {name}")


def register_camvid(root: str | os.PathLike[str], prefix: str = "camvid_sem_seg") -> None:
    """Registers `<prefix>_{train,val,test}`: folders `train`, `trainannot` and so on."""
    for split in (*SPLITS, "test"):
        images, labels = Path(root) / split, Path(root) / f"{split}annot"
        register_sem_seg_folder(f"{prefix}_{split}", images, labels, CAMVID_CLASSES, CAMVID_VOID)


def register_scenes(root: str | os.PathLike[str], prefix: str = "scenes") -> None:
    """Registers `<prefix>_sem_seg_{train,val}`, `<prefix>_det_...` and `<prefix>_digits_...`, views of one scene set.

    Its masks are run-length encoded: instance segmentation needs Detectron2's `INPUT.MASK_FORMAT: bitmask`.
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
    """Registers a folder of images and one of label maps, see `folders.check_sem_seg_folder`.

    Raises:
        InputError: the classes or the ignore value make no sense, or `name` stands for something else.
    """
    _register_sem_seg(name, Path(images), Path(labels), tuple(classes), ignore)


def register_coco(name: str, annotations: str | os.PathLike[str], images: str | os.PathLike[str]) -> None:
    """Registers a detection set in COCO's format, see `coco.check_coco`.

    Raises:
        InputError: `name` stands for something else.
    """
    _register_coco(name, Path(annotations), Path(images))


def register_images(
    name: str, root: str | os.PathLike[str], reader: str = "", split: str = "", class_map: str = ""
) -> None:
    """Registers a set of labelled images for classification, see `images.open_images`.

    Raises:
        InputError: `name` stands for something else.
    """
    _register_images(name, Path(root), reader, split, class_map)


def detections(name: str) -> CocoSet | None:
    """What a registered set in COCO's format holds; looked at and checked once. None of a set in another format.

    Raises:
        FileNotFoundError: a set that others have registered is not there.
        InputError: as of `coco.check_coco`.
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

    def load():
        ready()
        return open_images(**source)

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
        return check_sem_seg_folder(images, labels, classes, ignore, listed=listed)

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
) -> None:
    @cache
    def checked() -> CocoSet:
        ready()
        return check_coco(annotations, images, None if classes is None else len(classes))

    def load() -> Records:
        checked()
        return coco_records(annotations, images, name)

    metadata = {"evaluator_type": "coco", "image_root": str(images), "json_file": str(annotations)}
    if classes is not None:
        metadata["thing_classes"] = list(classes)
    if _register(name, load, metadata):
        _detections[name] = checked


def coco_records(annotations: Path, images: Path, name: str) -> Records:
    """What Detectron2 makes of a checked file of annotations.

    Raises:
        InputError: it cannot, as of keypoints that are no list.
    """
    from detectron2.data.datasets import load_coco_json

    try:
        return load_coco_json(str(annotations), str(images), name)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        reason = one_line(error, 160)
        raise InputError(f"{annotations}: is not COCO's format throughout ({type(error).__name__}: {reason})") from None


def _register(name: str, load: Callable[[], Records], metadata: dict[str, Any]) -> bool:
    """Whether the set is new."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    content = tuple(metadata.items())
    if name in DatasetCatalog:
        if _registered.get(name) != content:
            raise InputError(f"{name}: this name already stands for another data set; choose another name")
        return False
    if _registered.pop(name, None) is not None and name in MetadataCatalog:
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    _registered[name] = content
    return True
