"""Checks of detection data in COCO's format, before training starts."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sirfp.data.folders import DECODED, check_image, image_size, in_threads
from sirfp.errors import InputError

LAYOUT = "COCO's format with images, annotations and categories"
TOLERANCE = 1.0
"""Pixels by which a box may stick out of its image; annotation tools round."""


def check_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    decoded: int = DECODED,
    flat_boxes: bool = False,
) -> tuple[str, ...]:
    """Checks an annotation file against its images.

    Sizes are read from all images' headers; at most `decoded` images, spread evenly, are decoded.

    Args:
        annotations: JSON file in COCO's detection format.
        images: folder which the file names in it are relative to.
        num_classes: how many categories the model expects, if known.
        decoded: most images whose pixels are read.
        flat_boxes: whether boxes may lack width or height, as few in COCO 2017 do; Detectron2 leaves them out.

    Returns:
        Names of the categories, in the order of their ids, which is the order of Detectron2's classes.

    Raises:
        InputError: the file or the folder is missing or not of the format, nothing is annotated, an
            annotation names an unknown image or category, a box is degenerate or outside its image, an image
            is missing, cannot be read or has another size than stated, or the number of categories is not
            `num_classes`.
    """
    path, folder = Path(annotations), Path(images)
    content = _read(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the images of {path}")
    names = _check_categories(path, content["categories"], num_classes)
    records = _by_id(path, content["images"], "images", ("id", "file_name", "height", "width"))
    if not records or not content["annotations"]:
        empty = "annotations" if records else "images"
        raise InputError(f"{path}: lists no {empty}; a detection set needs at least one")
    _by_id(path, content["annotations"], "annotations", ("id", "image_id", "category_id", "bbox"))
    for annotation in content["annotations"]:
        _check_annotation(path, annotation, records, names, flat_boxes)
    missing = [record["file_name"] for record in records.values() if not (folder / record["file_name"]).is_file()]
    if missing:
        raise InputError(
            f"{folder / missing[0]}: no such image; {len(missing)} of the {len(records)} images of {path} "
            "are missing; add them or name the right folder"
        )
    listed = list(records.values())
    in_threads(lambda record: _check_size(path, folder, record), listed)
    step = max(1, -(-len(listed) // decoded))
    in_threads(lambda record: check_image(folder / record["file_name"]), listed[::step])
    return tuple(names.values())


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected {LAYOUT}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); expected {LAYOUT}") from error
    for key in ("images", "annotations", "categories"):
        part = content.get(key) if isinstance(content, dict) else None
        if not isinstance(part, list) or not all(isinstance(entry, dict) for entry in part):
            raise InputError(f"{path}: has no list {key!r} of objects; expected {LAYOUT}")
    return content


def _by_id(
    path: Path, entries: Sequence[dict[str, Any]], part: str, required: tuple[str, ...]
) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        absent = [key for key in required if key not in entry]
        if absent:
            raise InputError(f"{path}: entry {position} of {part} lacks {absent[0]!r}; expected {LAYOUT}")
        if entry["id"] in found:
            raise InputError(f"{path}: id {entry['id']} stands twice in {part}; ids must be unique")
        found[entry["id"]] = entry
    return found


def _check_categories(path: Path, categories: Sequence[dict[str, Any]], num_classes: int | None) -> dict[int, str]:
    found = _by_id(path, categories, "categories", ("id", "name"))
    names = {number: found[number]["name"] for number in sorted(found)}
    if num_classes is not None and len(names) != num_classes:
        raise InputError(
            f"{path}: has {len(names)} categories, the config asks for {num_classes} classes; make them agree"
        )
    return names


def _check_annotation(
    path: Path,
    annotation: dict[str, Any],
    records: dict[Any, dict[str, Any]],
    names: dict[int, str],
    flat_boxes: bool,
) -> None:
    where = f"{path}: annotation {annotation['id']}"
    if annotation["category_id"] not in names:
        raise InputError(
            f"{where} has unknown category {annotation['category_id']}; "
            f"categories has {', '.join(map(str, names)) or 'none'}; correct one of them"
        )
    record = records.get(annotation["image_id"])
    if record is None:
        raise InputError(
            f"{where} is for image {annotation['image_id']}, which images does not list; correct one of them"
        )
    box = annotation["bbox"]
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(n, int | float) for n in box)
    least = 0 if flat_boxes else math.ulp(0)
    if not numbers or not all(math.isfinite(n) for n in box) or min(box[2:]) < least:
        raise InputError(
            f"{where} has box {box}; four numbers are needed: left, top, width > 0, height > 0; correct or remove it"
        )
    x, y, width, height = box
    over = max(-x, -y, x + width - record["width"], y + height - record["height"])
    if over > TOLERANCE:
        raise InputError(
            f"{where} has box {box} (left, top, width, height), {over:g} pixels outside its image "
            f"{record['file_name']} of {record['width']} x {record['height']}; clip or remove it"
        )


def _check_size(path: Path, folder: Path, record: dict[str, Any]) -> None:
    width, height = image_size(folder / record["file_name"])
    if (width, height) != (record["width"], record["height"]):
        raise InputError(
            f"{folder / record['file_name']}: is {width} x {height} pixels, {path} says "
            f"{record['width']} x {record['height']}; correct one of them"
        )
