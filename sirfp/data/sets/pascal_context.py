"""Pascal Context's splits and labels from `trainval_merged.json`, or its splits from those of VOC 2010."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sirfp.data.conversion import context_json, read_json
from sirfp.data.descriptions import Split
from sirfp.data.folders import read_stems
from sirfp.data.splits import written
from sirfp.errors import InputError

MERGED = "trainval_merged.json"
_RECORDS = {
    "images": ("file_name", "image_id", "phase", "height", "width"),
    "annos_segmentation": ("image_id", "category_id", "segmentation"),
}


def read_merged(folder: Path) -> dict[str, list[dict[str, Any]]] | None:
    """The merged annotations of the challenge PASCAL in Detail; None where they are not there.

    Raises:
        InputError: they are damaged.
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


def list_splits(folder: Path, splits: Iterable[Split], merged: dict[str, list[dict[str, Any]]] | None) -> None:
    """Writes `ImageSets/SegmentationContext/{train,val}.txt`.

    Raises:
        InputError: neither the merged annotations nor the lists of VOC 2010 are there.
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
        written(folder / split.listed, lambda path, text=text: path.write_text(text))


def merged_labels(folder: Path, merged: dict[str, list[dict[str, Any]]]) -> dict[Path, Callable[[], np.ndarray]]:
    """What makes the label map of each image."""
    annotations = defaultdict(list)
    for annotation in merged["annos_segmentation"]:
        annotations[annotation["image_id"]].append(annotation)
    return {
        folder / "JPEGImages" / image["file_name"]: partial(
            context_json, folder / MERGED, image, annotations[image["image_id"]]
        )
        for image in merged["images"]
    }
