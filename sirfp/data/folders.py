"""Checks data for semantic segmentation in two folders: images, and label maps of the same names.

A mistake is found before training starts and described in one line. Names and sizes are checked for all files, because
this reads only directories and file headers. Pixels are decoded, in threads, for at most `DECODED` evenly spaced pairs.
For CamVid these are all pairs, in a few seconds. For the largest data sets, decoding all pairs would delay training by
minutes, and a wrong class table shows in the first few label maps.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike

from sirfp.data.pixels import check_depth, depth_remarks, is_deep
from sirfp.data.remarks import label_remarks
from sirfp.errors import InputError
from sirfp.files.nearby import nearby

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
DECODED = 1000
"""Largest number of pairs of image and label map that a check decodes."""
_ENDS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}
_EXIF_ORIENTATION = 0x0112
_PNG_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
_SINGLE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Pair:
    """An image and its label map; width and height are in pixels, after EXIF orientation."""

    image: Path
    label: Path
    width: int
    height: int


class SemSegFolder(list[Pair]):
    """The pairs of a segmentation data set, sorted by name.

    Attributes:
        remarks: one line for each property of the decoded files that is allowed but probably not meant: classes without
            a pixel, mostly ignored pixels, 16-bit images.
    """

    def __init__(self, pairs: Iterable[Pair], remarks: Iterable[str] = ()):
        super().__init__(pairs)
        self.remarks = tuple(remarks)


def check_sem_seg_folder(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    classes: Sequence[str],
    ignore: int = 255,
    *,
    decoded: int = DECODED,
    listed: str | os.PathLike[str] = "",
) -> SemSegFolder:
    """Checks a segmentation data set and lists its pairs, sorted by name.

    Args:
        images: folder of images, of any format in `IMAGE_SUFFIXES`.
        labels: folder of label maps with the stems of the images: single-channel or palette files whose values are
            class indices or `ignore`. Label maps without an image are skipped.
        classes: names of the classes; label value `i` is `classes[i]`.
        ignore: label value of pixels that are ignored in training and evaluation.
        decoded: largest number of pairs to decode.
        listed: file with one stem per line; the set has only these images. All images by default.

    Returns:
        The pairs, and remarks on what is allowed but probably not meant (`SemSegFolder.remarks`).

    Raises:
        InputError: a folder is missing or empty, an image has no label map, a file cannot be read, sizes differ, or a
            label is outside the classes. The message names the first such file.
    """
    check_classes(classes, ignore)
    pairs = _pair_by_stem(Path(images), Path(labels), Path(listed) if listed else None)
    measured = in_threads(lambda pair: _measure(*pair), pairs)
    step = max(1, -(-len(measured) // decoded))
    found = in_threads(lambda pair: _check_pixels(pair, len(classes), ignore), measured[::step])
    counts = np.sum([one for one, _ in found], axis=0)
    return SemSegFolder(
        measured, label_remarks(counts, classes, ignore, len(found)) + depth_remarks(d for _, d in found)
    )


def check_classes(classes: Sequence[str], ignore: int) -> None:
    """Raises InputError unless the class names are distinct and `ignore` is not a class index."""
    if isinstance(classes, str) or not classes:
        raise InputError(f"classes: a list of at least one class name is needed, got {classes!r}")
    doubled = sorted({name for name in classes if list(classes).count(name) > 1})
    if doubled:
        raise InputError(f"classes: {doubled[0]!r} is listed more than once")
    if 0 <= ignore < len(classes):
        raise InputError(
            f"ignore value {ignore} is the index of class {classes[ignore]!r}; use one outside 0..{len(classes) - 1}"
        )


def read_label(path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> np.ndarray:
    """Reads a label map as (H, W) integers; for a palette file, returns the indices, not the colours.

    Can be used as `sem_seg_loading_fn` of Detectron2's `SemSegEvaluator`, whose default reader fails with NumPy 2.
    Detectron2's `DatasetMapper` reads label maps as grey images: this gives the same result except for palette files.

    Raises:
        InputError: the file cannot be read or has more than one channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in _SINGLE_CHANNEL:
                raise InputError(
                    f"{path}: a label map has one channel of class indices, this one has mode {image.mode}; convert it"
                )
            pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise unreadable(path, error) from error
    return pixels.astype(dtype or (np.uint8 if pixels.dtype == bool else pixels.dtype), copy=False)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Reads width and height in pixels from a file's header; applies the EXIF orientation.

    Raises:
        InputError: the header cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            plain = image.format == "PNG" and not image.info.keys() & _PNG_EXIF  # otherwise Pillow decodes the image
            turned = not plain and image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError, TypeError) as error:
        raise unreadable(path, error) from error
    return (height, width) if turned else (width, height)


def check_image(path: str | os.PathLike[str]) -> int | None:
    """Decodes an image.

    Returns:
        The largest value of an image of 16 bits; None for the usual 8 bits.

    Raises:
        InputError: the image is truncated or damaged, or has 32-bit values.
    """
    from PIL import Image

    try:
        with Image.open(path) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            check_depth(image, path)
            return int(np.asarray(image).max()) if is_deep(image) else None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise unreadable(path, error) from error


def has_end(path: Path) -> bool:
    """True if a file ends with the end mark of its format, or if the format has none. Truncated files lack the mark."""
    mark = _ENDS.get(path.suffix.lower())
    if mark is None:
        return True
    with suppress(OSError), path.open("rb") as file:
        file.seek(-len(mark), os.SEEK_END)
        return file.read() == mark
    return False


def list_images(folder: Path, suffixes: Iterable[str], what: str) -> dict[str, Path]:
    """Lists the files of a folder as {stem: file}, sorted, without hidden files.

    Args:
        folder: the folder; files in subfolders are ignored.
        suffixes: endings of the files to list, in lower case.
        what: description of the expected files, for messages.

    Raises:
        InputError: the folder is missing or empty, or two files share a stem.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder{nearby(folder)}; expected {what}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise InputError(f"{path}: shares its stem with {found[path.stem].name}; remove one")
        found[path.stem] = path
    if not found:
        raise InputError(f"{folder}: no files ending in {', '.join(suffixes)}; expected {what}")
    return found


def read_stems(listed: Path) -> list[str]:
    """Reads a list of images; returns their stems, the first word of each line.

    Raises:
        InputError: the list cannot be read or is empty.
    """
    try:
        stems = [line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{listed}: the list of images cannot be read ({reason})") from error
    if not stems:
        raise InputError(f"{listed}: the list of images is empty")
    return stems


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Applies `work` to items in threads; returns the results in order. Raises the first error.

    Threads are useful because decoding an image releases Python's global lock.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pair_by_stem(images: Path, labels: Path, listed: Path | None) -> list[tuple[Path, Path]]:
    layout = f"images in {images} and label maps of the same names in {labels}"
    found = list_images(images, IMAGE_SUFFIXES, layout)
    if listed is not None:
        found = _of_list(listed, found, images)
    maps = list_images(labels, LABEL_SUFFIXES, layout)
    missing = [path for stem, path in found.items() if stem not in maps]
    if missing:
        raise InputError(
            f"{missing[0]}: no label map {labels / missing[0].stem}.png; {len(missing)} of "
            f"{len(found)} images lack one; add the label maps or remove the images"
        )
    return [(path, maps[stem]) for stem, path in found.items()]


def _of_list(listed: Path, found: dict[str, Path], images: Path) -> dict[str, Path]:
    stems = read_stems(listed)
    absent = [stem for stem in stems if stem not in found]
    if absent:
        raise InputError(
            f"{images}: has no image {absent[0]}; {len(absent)} of the {len(stems)} that {listed} lists are not there"
        )
    return {stem: found[stem] for stem in sorted(stems)}


def _measure(image: Path, label: Path) -> Pair:
    width, height = image_size(image)
    label_width, label_height = image_size(label)
    if (width, height) != (label_width, label_height):
        raise InputError(
            f"{label}: is {label_width} x {label_height} pixels, its image {image.name} is {width} x "
            f"{height}; make them the same size"
        )
    return Pair(image, label, width, height)


def _check_pixels(pair: Pair, classes: int, ignore: int) -> tuple[np.ndarray, int | None]:
    """Decodes a pair; returns the pixels of each class and the ignored ones, (classes + 1,), and `check_image`."""
    depth = check_image(pair.image)
    pixels = read_label(pair.label)
    wrong = pixels[((pixels < 0) | (pixels >= classes)) & (pixels != ignore)]
    if wrong.size:
        raise InputError(
            f"{pair.label}: label {int(wrong[0])} is outside the {classes} classes; allowed are "
            f"0..{classes - 1} and {ignore} (ignored); correct the labels, the classes or the ignore value"
        )
    labelled = pixels[pixels != ignore]
    counts = np.bincount(labelled.ravel(), minlength=classes)
    return np.append(counts, pixels.size - labelled.size), depth


def unreadable(path: str | os.PathLike[str], error: Exception) -> InputError:
    """The error for a file that Pillow cannot read."""
    reason = " ".join(str(error).replace(str(path), "the file").split())
    return InputError(f"{path}: cannot be read as an image ({reason}); replace or remove it")
