"""Opens labelled images for classification by timm's readers: folders, tar files, WebDataset and others."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirfp.data.folders import DECODED, IMAGE_SUFFIXES, check_image, in_threads
from sirfp.data.pixels import depth_remarks, format_of
from sirfp.errors import InputError
from sirfp.files.nearby import nearby

if TYPE_CHECKING:
    from torch.utils.data import Dataset


PACKAGES = {"wds": "webdataset", "hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow-datasets"}
"""{prefix of a reader's name: the package that it needs}."""
READERS = ("", *PACKAGES)
"""Prefixes of the allowed readers' names."""


def open_images(
    root: str | os.PathLike[str],
    reader: str = "",
    *,
    split: str = "",
    class_map: str = "",
    training: bool = False,
    batch_size: int = 1,
    seed: int = 0,
    channels: int = 3,
    advice: str = "",
) -> Dataset:
    """Opens labelled images, those of 16 bits per channel as 8 bits (`sirfp.data.pixels`).

    Args:
        root: location of the images. For reader "": a folder with one subfolder per class, a tar file of such a folder,
            or a folder with one tar file per class.
        reader: name of one of timm's readers: "" or e.g. "wds/" for WebDataset's shards.
        split: name of the split, for readers with several splits in one root.
        class_map: text file of class names, one per line, for data sets without class names. Pickles, which timm also
            accepts, are refused.
        training: True to shuffle; only for streaming readers.
        batch_size: batch size; only for streaming readers.
        seed: seed of the order; only for streaming readers.
        channels: number of channels: 1 (grey), 3 (RGB) or 4 (with transparency).
        advice: what to add to the message on images beside the folders.

    Raises:
        InputError: there are no images, images lie beside the folders of classes, image files do not have so many
            channels, the class map cannot be read or names a class twice, or a package for this reader is missing.
    """
    from timm.data import create_dataset

    from sirfp.data.timm_images import as_eight_bits

    root, mode = Path(root), format_of(channels)
    if not (root.exists() or reader):
        raise InputError(
            f"{root}: no such folder or tar file{nearby(root)}; expected a folder with one subfolder per class"
        )
    prefix = reader.lower().partition("/")[0]
    if prefix not in READERS:  # timm's other readers unpickle files
        known = ", ".join(f"{name}/" for name in READERS[1:])
        raise InputError(f"there is no reader {reader!r}; known are '', {known}")
    if prefix == "wds" and not root.is_dir():  # WebDataset runs an address such as "pipe:..." as a command
        raise InputError(f"{root}: no such folder; reader {reader!r} takes a folder of shards")
    if class_map and Path(class_map).suffix.lower() != ".txt":
        raise InputError(f"{class_map}: a class map is a .txt file of class names, one per line")
    if class_map:
        _check_class_map(Path(class_map))
    tars = not reader and (root.suffix == ".tar" or any(root.glob("*.tar")))
    options: dict[str, Any] = {"is_training": training, "batch_size": batch_size, "seed": seed}
    options["class_map"] = class_map or None
    if prefix in ("wds", "hfids"):
        options["input_img_mode"] = ""  # images are converted later; tfds has decoded arrays of 8 bits
    elif prefix == "tfds":
        options["input_img_mode"] = mode
    if prefix and importlib.util.find_spec(PACKAGES[prefix].replace("-", "_")) is None:
        raise _needs(reader)
    try:
        if tars:
            from timm.data import ImageDataset
            from timm.data.readers.reader_image_in_tar import ReaderImageInTar

            tar = ReaderImageInTar(str(root), class_map=class_map, cache_tarinfo=False)
            return as_eight_bits(ImageDataset(str(root), reader=tar), mode)
        found = as_eight_bits(create_dataset(reader, str(root), split, search_split=False, **options), mode)
    except (ImportError, NameError) as error:
        raise _needs(reader, str(error)) from error
    except (RuntimeError, AssertionError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{root}: no labelled images can be read there ({reason})") from error
    nameless = not prefix and "" in known_classes(found)  # timm's class of the images beside the folders
    loose = sum(Path(file).parent == root for file, *_ in found.reader.samples) if nameless else 0
    if loose:  # a class map with an empty line has a class without a name too
        raise InputError(
            f"{root}: {loose} images lie beside the folders; each image must be in the folder of its class{advice}"
        )
    return found


def _check_class_map(path: Path) -> None:
    """Raises InputError if a file of class names cannot be read, or names a class twice: timm would count it once."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the class map cannot be read ({error})") from error
    lines: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if lines.setdefault(name, line) != line and name:
            raise InputError(f"{path}: class {name!r} is on lines {lines[name]} and {line}; name each class once")


def _needs(reader: str, why: str = "") -> InputError:
    """The error for a reader whose package is missing, or cannot be imported for a reason."""
    package = PACKAGES.get(reader.lower().partition("/")[0], reader)
    return InputError(f"reader {reader!r} needs a package; run: pip install {package}{why and f' ({why})'}")


def known_classes(images: Dataset) -> list[str]:
    """The names of a set's classes in the order of their indices; empty if its reader does not know them."""
    reader = getattr(images, "reader", None)
    known = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    return [str(name) for name in sorted(known, key=known.__getitem__)]


@dataclass(frozen=True)
class ClassFolders:
    """Images in one folder per class that are valid.

    Attributes:
        images: {class: number of its images}, in the order of the class indices.
        remarks: what is allowed but probably not meant: `pixels.depth_remarks`, `left_out`.
    """

    images: Mapping[str, int]
    remarks: Sequence[str]


def check_class_folders(root: str | os.PathLike[str], classes: int | None = None) -> ClassFolders:
    """Reads a folder with one subfolder per class as training does, and decodes all its files.

    Args:
        root: the folder.
        classes: the expected number of classes; None for any.

    Raises:
        InputError: there are no images, they are in tar files, some lie beside the folders, one cannot be read, or the
            number of classes differs.
    """
    if Path(root).suffix == ".tar" or any(Path(root).glob("*.tar")):
        raise InputError(f"{root}: images in tar files are not checked here; unpack them, or train, which reads them")
    advice = " (--labels FOLDER checks segmentation, --coco FILE detection)"
    reader: Any = open_images(root, advice=advice).reader  # type: ignore[attr-defined]
    names = {index: str(name) for name, index in reader.class_to_idx.items()}
    if classes not in (None, len(names)):
        raise InputError(f"{root}: holds {len(names)} classes ({', '.join(names.values())}), expected {classes}")
    counts = Counter(names[label] for *_, label in reader.samples)
    remarks = depth_remarks(in_threads(check_image, [Path(file) for file, *_ in reader.samples]))
    return ClassFolders({names[index]: counts[names[index]] for index in sorted(names)}, remarks + left_out(root))


def check_images(images: Dataset) -> list[str]:
    """Decodes at most `DECODED` evenly spaced images of a set in a folder.

    The check is needed because timm silently replaces an unreadable image by another one.

    Returns:
        Remarks on what is allowed but probably not meant: `pixels.depth_remarks`, `left_out`.

    Raises:
        InputError: an image cannot be read.
    """
    reader: Any = getattr(images, "reader", None)
    files = [Path(file) for file, _ in getattr(reader, "samples", ()) if Path(file).is_file()]
    remarks = depth_remarks(in_threads(check_image, files[:: max(1, -(-len(files) // DECODED))]))
    return remarks + (left_out(reader.root) if files else [])


def left_out(root: str | os.PathLike[str]) -> list[str]:
    """Describes, in at most one line, the images of a folder whose endings timm does not read."""
    from timm.data.readers.img_extensions import get_img_extensions

    read = get_img_extensions()
    others = set(IMAGE_SUFFIXES) - set(read)
    found = Counter(ending for *_, files in os.walk(root) for ending in map(_ending, files) if ending in others)
    if not found:
        return []
    named = ", ".join(sorted(found))
    kinds = ", ".join(read)
    return [f"{sum(found.values())} images ending in {named} are left out: only {kinds} are read; convert them"]


def _ending(file: str) -> str:
    return os.path.splitext(file)[1].lower()
