"""Brings images of every depth to 8 bits per channel, in the same way for every reader.

Pillow clips values above 255 when it converts an image, so that a 16-bit image becomes white. Here 16-bit values are
divided by 257, which maps 0..65535 to 0..255. Images of 32-bit integers or floats are refused: their files do not tell
which values are black and white.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from sirfp.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

DEEPEST = 65535
"""The largest 16-bit value."""
DARK = DEEPEST // 4
"""16-bit images whose values are all below this use less than a quarter of the range: a check says so."""
LARGEST_SIDE = 16384
"""The largest height or width of an image, in pixels."""
FORMATS = {1: "L", 3: "RGB", 4: "RGBA"}
"""{number of a network's input channels: Pillow's mode of its images}."""
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BITS_AS_I = ("PNG", "PPM")
"""File formats without 32-bit values, of which Pillow gives 16-bit images the mode "I" (PNG: before Pillow 11.3)."""


def is_deep(image: Image) -> bool:
    """True if an image, as Pillow has opened it, has one channel of 16 bits."""
    return image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in _SIXTEEN_BITS_AS_I)


def check_depth(image: Image, name: str | os.PathLike[str]) -> None:
    """Raises InputError if an image has 32-bit values."""
    if image.mode in ("I", "F") and not is_deep(image):
        kind = "floats" if image.mode == "F" else "integers"
        raise InputError(
            f"{name}: has 32-bit {kind} (Pillow's mode {image.mode}), whose black and white are not known; "
            "convert it to 8 or 16 bits"
        )


def eight_bits(image: Image, name: str | os.PathLike[str]) -> Image:
    """Returns an image of 8 bits per channel: a 16-bit image as mode "L", its values divided by 257; others unchanged.

    The orientation in the file's EXIF data is kept, not applied.

    Args:
        image: an image as Pillow has opened it.
        name: name of the file, for messages.

    Raises:
        InputError: the image has 32-bit values.
        OSError: the image cannot be decoded.
    """
    from PIL import Image as pillow

    check_depth(image, name)
    if not is_deep(image):
        return image
    made = pillow.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    made.getexif().update(image.getexif())
    return made


def read_pixels(path: str | os.PathLike[str], format: str | None = None) -> np.ndarray:
    """Reads an image as Detectron2's `read_image` does, but 16-bit images as 8 bits.

    Args:
        path: an image file, of any kind that Detectron2's `PathManager` opens.
        format: INPUT.FORMAT, e.g. "BGR" or "L"; None for the file's own channels.

    Returns:
        The image after EXIF orientation, (H, W, C) of uint8.

    Raises:
        InputError: the image has 32-bit values.
        OSError: the image cannot be read.
    """
    from detectron2.data.detection_utils import _apply_exif_orientation, convert_PIL_to_numpy
    from detectron2.utils.file_io import PathManager
    from PIL import Image as pillow

    with PathManager.open(os.fspath(path), "rb") as file, pillow.open(file) as image:
        pixels = convert_PIL_to_numpy(_apply_exif_orientation(eight_bits(image, path)), format)
    # Pillow's memory is read-only. Mappers copy it by moving the channels to the front, unless there is only one.
    return np.require(pixels, requirements="W") if pixels.shape[-1] == 1 else pixels


def provide_depth() -> None:
    """Lets Detectron2's mappers read images by `read_pixels`: `DatasetMapper` looks `read_image` up at each call."""
    from detectron2.data import detection_utils

    detection_utils.read_image = read_pixels


def format_of(channels: int) -> str:
    """Returns Pillow's mode of the images that a network with so many input channels reads.

    Raises:
        InputError: image files do not have so many channels.
    """
    if channels not in FORMATS:
        known = ", ".join(map(str, FORMATS))
        raise InputError(f"the network reads {channels} channels; image files have {known}: read them by your own code")
    return FORMATS[channels]


def check_channels(format: str, channels: int) -> None:
    """Raises InputError unless images of a format have as many channels as the model's means.

    One channel fits any number of means, because the subtraction of the means repeats it.

    Args:
        format: INPUT.FORMAT.
        channels: the length of MODEL.PIXEL_MEAN.
    """
    from PIL import Image as pillow

    try:
        given = 3 if format in ("BGR", "YUV-BT.601") else len(pillow.new(format, (1, 1)).getbands())
    except (KeyError, ValueError):
        raise InputError(f"INPUT.FORMAT {format!r} is unknown; known are RGB, BGR, L, RGBA and YUV-BT.601") from None
    if given not in (1, channels):
        fitting = f"{FORMATS[channels]!r}" if channels in FORMATS else "your own reader of images"
        raise InputError(
            f"INPUT.FORMAT {format!r} gives images of {given} channels, MODEL.PIXEL_MEAN has {channels} values: "
            f"use {fitting}, or give PIXEL_MEAN and PIXEL_STD {given} values"
        )


def depth_remarks(largest: Iterable[int | None]) -> list[str]:
    """Describes the 16-bit images of a set in at most one line.

    Args:
        largest: the largest value of each image if it has 16 bits, else None (`folders.check_image`).
    """
    deep = [value for value in largest if value is not None]
    if not deep:
        return []
    text = f"16-bit images: {len(deep)}, read as value / 257, which is 0..255"
    if max(deep) < DARK:
        text += f"; no value is above {max(deep)}, read as {max(deep) // 257}: rescale them to 0..{DEEPEST}"
    return [text]


def in_format(image: Any, mode: str) -> Image:
    """Returns an image that timm has opened in one of Pillow's modes; see `eight_bits` for errors."""
    return eight_bits(image, getattr(image, "filename", "") or "an image").convert(mode)
