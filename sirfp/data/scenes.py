"""The embedded data set: scenes of scanned digits on photographs, made in seconds and without a download.

One folder serves three tasks. `composition.py` describes the scenes and the difference between the splits.

    manifest.json                         version, seed, sizes and numbers of files; written last
    train/000000.jpg                      images
    trainannot/000000.png                 label maps, in CamVid's layout: 0 is background, 1..10 are digits
    annotations/train.json                COCO: boxes and masks, run-length encoded because digits have holes
    classification/train/<class>/*.png    one digit per file
    and the same for `val`
"""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sirfp.data.composition import CLASSES, PHOTOGRAPHS, SPLITS, Digit, Scene, compose
from sirfp.data.location import datasets_root
from sirfp.errors import InputError

STUFF_CLASSES = ("background", *CLASSES)
"""Names of the values of a label map."""

VERSION = 1
"""Version of the format; increased when the files for the same seed change."""
MANIFEST = "manifest.json"
SIZES = ("train", "val", "size", "seed")
CROP_SIDE = 32
CROP_MARGIN = 1.2
CROP_MIN_VISIBLE = 0.8
JPEG_QUALITY = 95


@dataclass(frozen=True)
class SceneSet:
    """A finished set on disk.

    Attributes:
        root: folder of the set.
        train: number of training scenes.
        val: number of validation scenes.
        size: side of a scene in pixels.
        seed: of all random choices.
    """

    root: Path
    train: int
    val: int
    size: int
    seed: int

    def images(self, split: str) -> Path:
        """Folder of a split's images."""
        return self.root / split

    def labels(self, split: str) -> Path:
        """Folder of a split's label maps, which have the names of the images."""
        return self.root / f"{split}annot"

    def annotations(self, split: str) -> Path:
        """A split's annotations in COCO's format."""
        return self.root / "annotations" / f"{split}.json"

    def crops(self, split: str) -> Path:
        """Folder of a split's digits, with one folder for each class."""
        return self.root / "classification" / split


def make_scenes(
    root: str | os.PathLike[str] | None = None,
    *,
    train: int = 400,
    val: int = 100,
    size: int = 128,
    seed: int = 0,
    force: bool = False,
) -> SceneSet:
    """Makes the set; if `root` already holds a set made with the same arguments, returns that set.

    The set is written to a temporary folder beside `root`, which is renamed at the end: an interrupted set is never
    mistaken for a finished one. The same arguments give the same bytes (with the same versions of OpenCV, scikit-image
    and scikit-learn).

    Args:
        root: folder of the set; `scenes` in `datasets_root()` by default.
        train: number of training scenes.
        val: number of validation scenes.
        size: side of a scene in pixels.
        seed: of all random choices.
        force: True to replace an existing scene set. Folders of any other content are never replaced.

    Raises:
        InputError: an argument is out of range, or `root` holds other content than the requested set.
    """
    folder = _folder(root)
    wanted = SceneSet(folder, train, val, size, seed)
    for name, value, least in (("train", train, 1), ("val", val, 1), ("size", size, 64), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if occupied and _manifest(folder) is None:
        raise InputError(f"{folder}: exists and is no scene set; name another folder or remove it yourself")
    if occupied and not force:
        return _found(wanted)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = beside / "made"
        made.mkdir()
        _write(SceneSet(made, train, val, size, seed))
        _publish(made, folder, beside / "replaced", force)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return _found(wanted)


def load_scenes(root: str | os.PathLike[str] | None = None) -> SceneSet:
    """Finds a finished set.

    Args:
        root: folder of the set; `scenes` in `datasets_root()` by default.

    Raises:
        InputError: the set is missing, was made by another version, or lacks files.
    """
    folder = _folder(root)
    manifest = _manifest(folder)
    if manifest is None:
        raise InputError(f"{folder}: no finished scene set ({MANIFEST} is missing); make it by `sirfp data scenes`")
    if manifest["version"] != VERSION:
        raise InputError(f"{folder}: scenes of version {manifest['version']}, not {VERSION}; make them again by force")
    found = SceneSet(folder, *(manifest[key] for key in SIZES))
    for split in SPLITS:
        for name, path in (
            ("images", found.images(split)),
            ("labels", found.labels(split)),
            ("crops", found.crops(split)),
        ):
            there, made = _count(path), manifest["counts"][split][name]
            if there != made:
                raise InputError(f"{path}: {there} of {made} files are there; make the scenes again by force")
        if not found.annotations(split).is_file():
            raise InputError(f"{found.annotations(split)}: is missing; make the scenes again by force")
    return found


def _folder(root: str | os.PathLike[str] | None) -> Path:
    return datasets_root() / "scenes" if root is None else Path(root)


def _found(wanted: SceneSet) -> SceneSet:
    found = load_scenes(wanted.root)
    if found != wanted:
        raise InputError(
            f"{wanted.root}: holds scenes with {_words(found)}, asked for {_words(wanted)}; "
            "name another folder or replace it by force"
        )
    return found


def _words(scenes: SceneSet) -> str:
    return ", ".join(f"{key} {getattr(scenes, key)}" for key in SIZES)


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Reads the manifest; returns None if it is missing or not the manifest of a scene set."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
        ours = content["made_by"] == "sirfp scenes" and content.keys() >= {*SIZES, "version", "counts"}
        return content if ours else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _publish(made: Path, folder: Path, replaced: Path, force: bool) -> None:
    """Renames the finished set to its final folder, unless another process has put a set there in the meantime."""
    if force and folder.exists():
        folder.rename(replaced)
    try:
        made.rename(folder)
    except OSError:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        if force or _manifest(folder) is None:
            raise


def _write(scenes: SceneSet) -> None:
    counts = {split: _write_split(scenes, split, getattr(scenes, split)) for split in SPLITS}
    manifest = {
        "made_by": "sirfp scenes",
        "version": VERSION,
        **{key: getattr(scenes, key) for key in SIZES},
        "classes": STUFF_CLASSES,
        "photographs": PHOTOGRAPHS,
        "counts": counts,
    }
    (scenes.root / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _write_split(scenes: SceneSet, split: str, number: int) -> dict[str, int]:
    folders = (scenes.images(split), scenes.labels(split), scenes.annotations(split).parent)
    for folder in (*folders, *(scenes.crops(split) / name for name in CLASSES)):
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    crops = 0
    for index in range(number):
        scene = compose(split, index, size=scenes.size, seed=scenes.seed)
        name = f"{index:06d}"
        image = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
        _save(scenes.images(split) / f"{name}.jpg", image, cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
        _save(scenes.labels(split) / f"{name}.png", scene.label_map)
        images.append({"id": index + 1, "file_name": f"{name}.jpg", "height": scenes.size, "width": scenes.size})
        for digit in scene.digits:
            annotations.append(_annotation(digit, image_id=index + 1, annotation_id=len(annotations) + 1))
            if digit.visible >= CROP_MIN_VISIBLE:
                _save(
                    scenes.crops(split) / CLASSES[digit.label] / f"{len(annotations):06d}.png",
                    _crop(image, digit),
                )
                crops += 1
    coco = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)],
    }
    scenes.annotations(split).write_text(json.dumps(coco))
    return {"images": number, "labels": number, "digits": len(annotations), "crops": crops}


def _annotation(digit: Digit, image_id: int, annotation_id: int) -> dict[str, Any]:
    from pycocotools import mask as run_length

    encoded = run_length.encode(np.asfortranarray(digit.mask, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": digit.label + 1,
        "bbox": list(digit.box),
        "area": int(digit.mask.sum()),
        "iscrowd": 0,
        "segmentation": {
            "size": [int(n) for n in encoded["size"]],
            "counts": encoded["counts"].decode("ascii"),
        },
    }


def _crop(image: np.ndarray, digit: Digit) -> np.ndarray:
    """Crops a square around the digit, shifted to lie within the image: (CROP_SIDE, CROP_SIDE, 3)."""
    x, y, width, height = digit.box
    side = min(round(CROP_MARGIN * max(width, height)), len(image))
    left = min(max(x + (width - side) // 2, 0), len(image) - side)
    top = min(max(y + (height - side) // 2, 0), len(image) - side)
    square = image[top : top + side, left : left + side]
    return cv2.resize(square, (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_AREA)


def _save(path: Path, image: np.ndarray, *options: int) -> None:
    """Like `cv2.imwrite`, but raises OSError if the disk is full (`cv2.imwrite` returns False)."""
    encoded, data = cv2.imencode(path.suffix, image, options)
    if not encoded:
        raise RuntimeError(f"{path}: OpenCV could not encode an image of shape {image.shape}")
    path.write_bytes(data.tobytes())


__all__ = ["CLASSES", "STUFF_CLASSES", "Scene", "SceneSet", "load_scenes", "make_scenes"]
