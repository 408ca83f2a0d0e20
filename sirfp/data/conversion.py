"""From the label maps that data sets are published with to those of training: class indices, and 255 for the rest.

Every reader takes a path and returns (H, W) 8-bit integers, and raises InputError where the file is damaged or holds
a label that the data set does not have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sirfp.data.classes import (
    ADE20K_TRAINED,
    CITYSCAPES_IDS,
    CITYSCAPES_TRAINED,
    COCO_STUFF_TRAINED,
    IGNORE,
    PASCAL_CONTEXT_TRAINED,
    lookup,
)
from sirfp.data.folders import read_label
from sirfp.errors import InputError

Reader = Callable[[Path], np.ndarray]


def cityscapes_ids(path: Path) -> np.ndarray:
    """`*_gtFine_labelIds.png`: ids 0..33."""
    return _looked_up(path, read_label(path), _cityscapes_table())


def cityscapes_polygons(path: Path) -> np.ndarray:
    """`*_gtFine_polygons.json`: later polygons lie over earlier ones; a group of things counts as the thing."""
    from PIL import Image, ImageDraw

    content = read_json(path)
    table = _cityscapes_table()
    try:
        drawn = Image.new("L", (content["imgWidth"], content["imgHeight"]), IGNORE)
        draw = ImageDraw.Draw(drawn)
        for shape in content["objects"]:
            name = shape["label"]
            number = CITYSCAPES_IDS.get(name, CITYSCAPES_IDS.get(name.removesuffix("group")))
            if number is None:
                raise InputError(f"{path}: {name!r} is no label of Cityscapes; get the file again")
            if number >= 0 and not shape.get("deleted"):
                draw.polygon([tuple(point) for point in shape["polygon"]], fill=int(table[number]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is not of Cityscapes' format ({error!r}); get the file again") from error
    return np.asarray(drawn)


def ade20k(path: Path) -> np.ndarray:
    """SceneParse150's annotations: 1..150, and 0 for other objects."""
    return _looked_up(path, read_label(path), _ade20k_table())


def coco_stuff_mat(path: Path) -> np.ndarray:
    """COCO-Stuff-10K v1.1's `S`: ids 1..182, and 0 where nothing is labelled."""
    content = _read_mat(path)
    if np.size(content.get("names", ())) == 172:
        raise InputError(f"{path}: is of COCO-Stuff v1.0, whose ids differ; get cocostuff-10k-v1.1.zip")
    return _looked_up(path, _field(path, content, "S"), _coco_stuff_table())


def coco_stuff_png(path: Path) -> np.ndarray:
    """COCO-Stuff's pixel maps: an id less one, 0..181, and 255 where nothing is labelled."""
    return _looked_up(path, (read_label(path).astype(np.int64) + 1) % 256, _coco_stuff_table())


def context_mat(path: Path) -> np.ndarray:
    """Pascal Context's `LabelMap` of 459 ids, 0 for none."""
    return _looked_up(path, _field(path, _read_mat(path), "LabelMap"), _context_table())


def context_json(path: Path, image: dict[str, Any], annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """Masks of one image in `trainval_merged.json`, drawn one over the other.

    Args:
        path: the file, for messages.
        image: its record, with `height` and `width`.
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
    return _looked_up(path, pixels, _context_table())


def read_json(path: Path) -> Any:
    """A JSON file's content; raises InputError where it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); get the file again") from error


READERS: dict[str, Reader] = {
    "cityscapes ids": cityscapes_ids,
    "cityscapes polygons": cityscapes_polygons,
    "ade20k": ade20k,
    "coco-stuff mat": coco_stuff_mat,
    "coco-stuff png": coco_stuff_png,
    "context mat": context_mat,
}
"""Readers of one file for one image, by the names that descriptions use."""


@cache
def _cityscapes_table() -> np.ndarray:
    return lookup(CITYSCAPES_TRAINED, range(34))


@cache
def _ade20k_table() -> np.ndarray:
    return lookup(ADE20K_TRAINED, range(151))


@cache
def _coco_stuff_table() -> np.ndarray:
    return lookup(COCO_STUFF_TRAINED, range(183))


@cache
def _context_table() -> np.ndarray:
    return lookup(PASCAL_CONTEXT_TRAINED, range(460))


def _looked_up(path: Path, pixels: np.ndarray, table: np.ndarray) -> np.ndarray:
    known = (pixels >= 0) & (pixels < len(table))
    labels = table[np.where(known, pixels, np.intp(len(table) - 1))]
    wrong = pixels[labels < 0]
    if wrong.size:
        raise InputError(f"{path}: holds label {int(wrong[0])}, which the data set does not have; get the file again")
    return labels.astype(np.uint8)


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    from scipy.io import loadmat

    try:
        return loadmat(path)
    except Exception as error:  # loadmat raises many kinds on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as a .mat file ({reason}); get the file again") from error


def _field(path: Path, content: dict[str, np.ndarray], name: str) -> np.ndarray:
    pixels = content.get(name)
    if pixels is None or pixels.ndim != 2 or pixels.dtype.kind not in "iuf":
        raise InputError(f"{path}: has no label map {name!r}; get the file again")
    return pixels.astype(np.int64)
