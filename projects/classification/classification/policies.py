"""Makes timm's augmentation policies work with every version of Pillow.

Strong policies, such as "rand-m9-mstd0.5-inc1", sometimes posterize an image to 0 bits. The result is black with
Pillow before 13 and an error since (timm 1.0.31). Here at least one bit is kept.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import auto_augment


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's posterize, but at least one bit of each value is kept."""
    return auto_augment.posterize(image, max(1, bits), **options)


def patch_policies() -> None:
    """Makes timm's policies use this `posterize`, if they are built after this call."""
    for name, operation in auto_augment.NAME_TO_OP.items():
        if operation is auto_augment.posterize:
            auto_augment.NAME_TO_OP[name] = posterize
