"""Checks detection data in COCO's format before training starts."""

import json
import math
import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sirfp.data.folders import DECODED, check_image, has_end, image_size, in_threads
from sirfp.data.pixels import depth_remarks
from sirfp.data.run_lengths import covers
from sirfp.errors import InputError
from sirfp.files.nearby import nearby

LAYOUT = "COCO's format with images, annotations and categories"
TOLERANCE = 1.0
"""Number of pixels by which a box may exceed its image, because annotation tools round coordinates."""


@dataclass(frozen=True)
class CocoSet:
    """Summary of an annotation file.

    Attributes:
        classes: names of the categories in the order of their ids, which is the order of Detectron2's classes.
        masks: forms of the masks, crowds excluded: "polygon", "bitmask" (run-length encoded), "none".
        remarks: one line for each property of the decoded images that is allowed but probably not meant.
    """

    classes: tuple[str, ...]
    masks: frozenset[str]
    remarks: tuple[str, ...] = ()


def check_coco(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    num_classes: int | None = None,
    *,
    decoded: int = DECODED,
    flat_boxes: bool = False,
) -> CocoSet:
    """Checks an annotation file against its images.

    Reads the size from the header of every image, and the last bytes of every file: truncated files lack the end mark
    of their format. Decodes at most `decoded` evenly spaced images, and at most `decoded` of the images without an end
    mark.

    Args:
        annotations: JSON file in COCO's detection format.
        images: folder of the images; file names in the annotations are relative to it.
        num_classes: expected number of categories; None for any number.
        decoded: largest number of images to decode.
        flat_boxes: True to allow boxes of zero width or height. COCO 2017 has a few; Detectron2 skips them.

    Returns:
        A summary of the file.

    Raises:
        InputError: one of these faults is found:

            - the file or the folder is missing, or the file does not have COCO's format;
            - no object is annotated, or the number of categories is not `num_classes`;
            - an annotation names an unknown image or category, or has an invalid mask, `area` or `iscrowd`;
            - a box has no area or exceeds its image;
            - an image is missing, cannot be read or does not have the stated size.
    """
    path, folder = Path(annotations), Path(images)
    content = _read(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder{nearby(folder)}; expected the images of {path}")
    names = _check_categories(path, content["categories"], num_classes)
    records = _by_id(path, content["images"], "images", ("id", "file_name", "height", "width"))
    for record in records.values():
        _check_record(path, record)
    if not records or not content["annotations"]:
        empty = "annotations" if records else "images"
        raise InputError(f"{path}: lists no {empty}; a detection set needs at least one")
    _by_id(path, content["annotations"], "annotations", ("id", "image_id", "category_id", "bbox"))
    forms = [_check_annotation(path, one, records, names, flat_boxes) for one in content["annotations"]]
    masks = frozenset(
        form for form, one in zip(forms, content["annotations"], strict=True) if not one.get("iscrowd", 0)
    )
    if not masks:
        raise InputError(f"{path}: all annotations are crowds (iscrowd 1), which are not learned; add objects")
    remarks = depth_remarks(_check_images(path, folder, list(records.values()), decoded))
    return CocoSet(tuple(names.values()), masks, tuple(remarks))


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})" if path.exists() else f"no such file{nearby(path, ['.json'])}"
        raise InputError(f"{path}: {wrong}; expected {LAYOUT}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON in UTF-8 ({error}); expected {LAYOUT}") from error
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
        number = entry["id"]
        if not isinstance(number, int | str) or (part == "categories" and not isinstance(number, int)):
            raise InputError(f"{path}: entry {position} of {part} has id {number!r}; ids are whole numbers")
        if number in found:
            raise InputError(f"{path}: id {number} occurs twice in {part}; ids must be unique")
        found[number] = entry
    return found


def _check_categories(path: Path, categories: Sequence[dict[str, Any]], num_classes: int | None) -> dict[int, str]:
    found = _by_id(path, categories, "categories", ("id", "name"))
    names = {number: found[number]["name"] for number in sorted(found)}
    given: dict[str, int] = {}
    for number, name in names.items():
        if not isinstance(name, str):
            raise InputError(f"{path}: category {number} has name {name!r}; a name is a text")
        if given.setdefault(name, number) != number:
            raise InputError(f"{path}: categories {given[name]} and {number} are both called {name!r}; rename one")
    if num_classes is not None and len(names) != num_classes:
        raise InputError(
            f"{path}: has {len(names)} categories, the config asks for {num_classes} classes; make them agree"
        )
    return names


def _check_record(path: Path, record: dict[str, Any]) -> None:
    sides = (record["width"], record["height"])
    if not isinstance(record["file_name"], str):
        raise InputError(f"{path}: image {record['id']} has file_name {record['file_name']!r}; a name is a text")
    if not all(isinstance(side, int | float) and side > 0 for side in sides):
        raise InputError(f"{path}: image {record['id']} has width {sides[0]!r} and height {sides[1]!r}; give pixels")


def _check_annotation(
    path: Path,
    annotation: dict[str, Any],
    records: dict[Any, dict[str, Any]],
    names: dict[int, str],
    flat_boxes: bool,
) -> str:
    """Checks one annotation; returns the form of its mask."""
    where = f"{path}: annotation {annotation['id']}"
    category, image = annotation["category_id"], annotation["image_id"]
    if not isinstance(category, Hashable) or category not in names:
        raise InputError(
            f"{where} has unknown category {category!r}; "
            f"categories has {', '.join(map(str, names)) or 'none'}; correct one of them"
        )
    record = records.get(image) if isinstance(image, Hashable) else None
    if record is None:
        raise InputError(f"{where} is for image {image!r}, which images does not list; correct one of them")
    if annotation.get("ignore", 0):
        raise InputError(f"{where} has 'ignore', which is not COCO's; remove the annotation or make it a crowd")
    if annotation.get("iscrowd", 0) not in (0, 1):  # Detectron2 would leave the object out
        raise InputError(f"{where} has iscrowd {annotation['iscrowd']!r}; it is 0 for an object, 1 for a crowd")
    area = annotation.get("area", 0)
    if not _finite([area]) or area < 0:
        raise InputError(f"{where} has area {area!r}; give a number of pixels, or leave it out")
    box = annotation["bbox"]
    least = 0 if flat_boxes else math.ulp(0)
    if not isinstance(box, list) or len(box) != 4 or not _finite(box) or min(box[2:]) < least:
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
    return _mask_form(where, annotation.get("segmentation"), record)


def _mask_form(where: str, mask: Any, record: dict[str, Any]) -> str:
    if not mask:
        return "none"
    if isinstance(mask, dict):
        size = [record["height"], record["width"]]
        if mask.get("size") != size or not isinstance(mask.get("counts"), str | list):
            raise InputError(
                f"{where} has a run-length encoded mask of size {mask.get('size')}, its image {record['file_name']} "
                f"is {size} (height, width); counts and this size are needed"
            )
        if not covers(mask["counts"], int(size[0]) * int(size[1])):
            raise InputError(
                f"{where} has a run-length encoded mask whose runs do not cover its image {record['file_name']} of "
                f"{size[0]} x {size[1]} pixels; encode it again"
            )
        return "bitmask"
    if not isinstance(mask, list) or not all(isinstance(part, list) and _finite(part) for part in mask):
        raise InputError(f"{where} has a segmentation that is neither lists of numbers nor a run-length encoded mask")
    return "polygon"


def _finite(numbers: list[Any]) -> bool:
    """True if all items are numbers and finite as floats."""
    return all(isinstance(n, int | float) and abs(n) <= 1e300 for n in numbers)


def _check_images(path: Path, folder: Path, records: list[dict[str, Any]], decoded: int) -> list[int | None]:
    """Checks the images of a file; returns `check_image` of those that it decodes."""
    files = [folder / record["file_name"] for record in records]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such image; {len(missing)} of the {len(records)} images of {path} "
            "are missing; add them or name the right folder"
        )
    whole = in_threads(lambda record: _check_size(path, folder, record), records)
    cut = [file for file, ended in zip(files, whole, strict=True) if not ended]
    step = max(1, -(-len(files) // decoded))
    return in_threads(check_image, list(dict.fromkeys([*cut[:decoded], *files[::step]])))


def _check_size(path: Path, folder: Path, record: dict[str, Any]) -> bool:
    """Compares the stated size with the image; returns True if the file has the end mark of its format."""
    file = folder / record["file_name"]
    width, height = image_size(file)
    if (width, height) != (record["width"], record["height"]):
        raise InputError(
            f"{file}: is {width} x {height} pixels, {path} says {record['width']} x {record['height']}; "
            "correct one of them"
        )
    return has_end(file)
