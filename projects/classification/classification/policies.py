"""Makes timm's augmentation policies work with every version of Pillow.

Strong policies, such as "rand-m9-mstd0.5-inc1", sometimes posterize an image to 0 bits. With Pillow below 13 the result
is a black image, from Pillow 13 on an error (timm 1.0.31). Here at least one bit is kept.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import auto_augment


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Like timm's posterize, but keeps at least one bit of each value."""
    return auto_augment.posterize(image, max(1, bits), **options)


def patch_policies() -> None:
    """Makes timm use this `posterize` in all policies that are built after this call."""
    for name, operation in auto_augment.NAME_TO_OP.items():
        if operation is auto_augment.posterize:
            auto_augment.NAME_TO_OP[name] = posterize
