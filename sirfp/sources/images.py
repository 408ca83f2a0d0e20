"""Finds and decodes the image files of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.folders import IMAGE_SUFFIXES
from ..data.pixels import eight_bits
from ..errors import InputError, near

if TYPE_CHECKING:
    from PIL.Image import Image


def find_images(folder: str) -> list[Path]:
    """Lists the image files in a folder and its subfolders, sorted.

    Raises:
        InputError: the folder does not exist or contains no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"there is no folder of images {folder}{near(root.name, _names(root.parent))}")
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not found:
        raise InputError(f"{folder} holds no image, not even in subfolders; known endings: {' '.join(IMAGE_SUFFIXES)}")
    return found


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


def _names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []
