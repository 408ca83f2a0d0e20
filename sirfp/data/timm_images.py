"""timm's data sets with images of every depth brought to 8 bits per channel; timm itself clips 16-bit values."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.data import ImageDataset, IterableImageDataset

from sirfp.data.pixels import in_format

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Converted:
    """Converts an image to one of Pillow's modes, then applies a transform, if there is one."""

    mode: str
    transform: Callable[[Any], Any] | None

    def __call__(self, image: Any) -> Any:
        image = in_format(image, self.mode)
        return image if self.transform is None else self.transform(image)


class _Converting:
    """The transform of a data set, which timm sets, with `Converted` before it."""

    mode = "RGB"
    _transform: Callable[[Any], Any] | None = None

    @property
    def transform(self) -> Converted:
        return Converted(self.mode, self._transform)

    @transform.setter
    def transform(self, transform: Callable[[Any], Any] | None) -> None:
        self._transform = transform


class EightBitImages(_Converting, ImageDataset):
    """timm's `ImageDataset`, with images in one of Pillow's modes."""

    def __getitem__(self, index: int) -> Any:
        """Returns an image and its label; for an image that cannot be decoded, those of the next one, as timm does."""
        for _ in range(self._max_retries):
            try:
                return super().__getitem__(index)
            except OSError as error:
                _logger.warning(f"Skipped image {index}: {error}")
                index = (index + 1) % len(self)
        raise RuntimeError(f"{self._max_retries} images in a row cannot be read")


class EightBitStream(_Converting, IterableImageDataset):
    """timm's `IterableImageDataset`, with images in one of Pillow's modes."""


def as_eight_bits(images: Any, mode: str) -> EightBitImages | EightBitStream:
    """Returns a data set with the reader of one of timm's data sets and images in `mode` ("L", "RGB", "RGBA")."""
    streams = isinstance(images, IterableImageDataset)
    made: Any = (EightBitStream if streams else EightBitImages)(
        "", reader=images.reader, **({} if streams else {"input_img_mode": None})
    )
    made.mode = mode
    return made
