"""Pascal Context (Mottaghi et al., 2014) with the 59 frequent classes of its 459 labels; label 0 is no class.

There are two sources. Either `trainval_merged.json` gives splits and labels, or the lists of VOC 2010 give the splits
and one .mat file per image gives the labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sirfp.data.classes import split_names
from sirfp.data.conversion import PublishedIds, mat_field, read_json, read_mat
from sirfp.data.data_set import DataSet, Raw, Split, register_data_set
from sirfp.data.folders import read_stems
from sirfp.data.splits import written
from sirfp.errors import InputError

MERGED = "trainval_merged.json"
_RECORDS = {
    "images": ("file_name", "image_id", "phase", "height", "width"),
    "annos_segmentation": ("image_id", "category_id", "segmentation"),
}
TRAINED = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159),
    *(162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368),
    *(397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
IDS = PublishedIds(trained=TRAINED, ids=range(460))
CLASSES = split_names(
    """aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet, car, cat,
    ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass, ground, horse,
    keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves,
    sidewalk, sign, sky, snow, sofa, diningtable, track, train, tree, truck, tvmonitor, wall, water, window, wood"""
)


def read_label_map(path: Path) -> np.ndarray:
    """Reads `LabelMap` of a .mat file."""
    return IDS.to_classes(path, mat_field(path, read_mat(path), "LabelMap"))


def read_masks(path: Path, image: dict[str, Any], annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Draws the masks of one image in `trainval_merged.json`; later masks cover earlier ones.

    Args:
        path: the file, for messages.
        image: record of the image, with `height` and `width`.
        annotations: the image's entries of `annos_segmentation`, run-length encoded.
    """
    from pycocotools.mask import decode

    pixels = np.zeros((image["height"], image["width"]), np.int64)
    for annotation in annotations:
        try:
            pixels[decode(annotation["segmentation"]).astype(bool)] = annotation["category_id"]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{path}: a mask of {image['file_name']} is damaged ({error}); get the file again"
            ) from error
    return IDS.to_classes(path, pixels)


def read_merged(folder: Path) -> dict[str, list[dict[str, Any]]] | None:
    """Reads the merged annotations of the challenge PASCAL in Detail; returns None if the file is missing.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / MERGED
    if not path.is_file():
        return None
    content = read_json(path)
    for part, keys in _RECORDS.items():
        records = content.get(part) if isinstance(content, dict) else None
        whole = isinstance(records, list) and all(
            isinstance(record, dict) and set(keys) <= record.keys() for record in records
        )
        if not whole:
            raise InputError(f"{path}: has no list {part!r} of objects with {', '.join(keys)}; get the file again")
    return content


def gather(folder: Path, splits: tuple[Split, ...]) -> Mapping[Path, Callable[[], np.ndarray]]:
    """Writes the lists of images; returns functions that make label maps from the merged annotations."""
    content = read_merged(folder)
    list_splits(folder, splits, content)
    return merged_labels(folder, content) if content else {}


def list_splits(folder: Path, splits: Iterable[Split], merged: dict[str, list[dict[str, Any]]] | None) -> None:
    """Writes `ImageSets/SegmentationContext/{train,val}.txt`.

    Raises:
        InputError: the merged annotations and the lists of VOC 2010 are both missing.
    """
    for split in splits:
        source = folder / "ImageSets" / "Main" / f"{split.name}.txt"
        if merged is not None:
            names = sorted(Path(image["file_name"]).stem for image in merged["images"] if image["phase"] == split.name)
        elif source.is_file():
            names = sorted(read_stems(source))
        elif (folder / split.listed).is_file():
            continue
        else:
            raise InputError(
                f"{folder / MERGED}: no such file, nor {source}; one of them says which images are for {split.name}"
            )
        text = "".join(f"{name}\n" for name in names)
        written(folder / split.listed, partial(Path.write_text, data=text))


def merged_labels(folder: Path, merged: dict[str, list[dict[str, Any]]]) -> dict[Path, Callable[[], np.ndarray]]:
    """{image: function that makes its label map}."""
    annotations = defaultdict(list)
    for annotation in merged["annos_segmentation"]:
        annotations[annotation["image_id"]].append(annotation)
    return {
        folder / "JPEGImages" / image["file_name"]: partial(
            read_masks, folder / MERGED, image, annotations[image["image_id"]]
        )
        for image in merged["images"]
    }


def _split(name: str, count: int) -> Split:
    return Split(
        name=name,
        registered=f"pascal_context_59_sem_seg_{name}",
        count=count,
        images="JPEGImages/*.jpg",
        labels="annotations_detectron2/{stem}.png",
        raw=(Raw(path=MERGED, read=None), Raw(path="trainval/{stem}.mat", read=read_label_map)),
        listed=f"ImageSets/SegmentationContext/{name}.txt",
    )


PASCAL_CONTEXT = register_data_set(
    DataSet(
        name="pascal_context",
        title="Pascal Context (59 classes)",
        task="segmentation",
        folder="VOC2010",
        splits=(_split("train", 4998), _split("val", 5105)),
        classes=59,
        url="https://cs.stanford.edu/~roozbeh/pascal-context/",
        licence="Pascal VOC's terms, Flickr's terms for the images",
        archives="VOCtrainval_03-May-2010.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2010/, and "
        "trainval_merged.json or trainval.tar.gz with the labels",
        names=CLASSES,
        ids=TRAINED,
        aliases=("VOCdevkit/VOC2010", "pascal_context", "pcontext"),
        gather=gather,
    )
)
