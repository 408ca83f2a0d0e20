"""Finds and decodes the image files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.folders import IMAGE_SUFFIXES
from ..data.pixels import eight_bits
from ..errors import InputError
from ..files.nearby import nearby

if TYPE_CHECKING:
    from PIL.Image import Image


def find_images(folder: str) -> list[Path]:
    """Lists the image files in a folder and its subfolders, which may be links, sorted.

    Raises:
        InputError: the folder does not exist or contains no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder of images {folder}{nearby(folder)}")
    found = sorted(p for p in _files(root) if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"{folder} holds no image, not even in subfolders; known endings: {' '.join(IMAGE_SUFFIXES)}")
    return found


def _files(root: Path) -> Iterator[Path]:
    """Yields all files below a folder; a folder that several links lead to is read once."""
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        yield from (Path(folder, name) for name in names)


def read_image(path: Path) -> Image:
    """Decodes an image file with PIL, an image of 16 bits per channel to 8 bits (`sirfp.data.pixels`).

    Raises:
        InputError: the file cannot be read or decoded, or has 32-bit values.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            image.load()
            return eight_bits(image, path)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        reason = " ".join(str(error).replace(str(path), "the file").split())
        raise InputError(f"{path}: cannot be read as an image ({reason}); replace or remove it") from None
