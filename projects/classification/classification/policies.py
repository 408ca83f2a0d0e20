"""timm's augmentation policies on every Pillow.

Strong policies ask for an image of no bits at all, as "rand-m9-mstd0.5-inc1" does now and then: black with Pillow
before 13, an error since (timm 1.0.31). Here one bit stays.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import auto_augment


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """As timm's, but at least one bit of each value stays."""
    return auto_augment.posterize(image, max(1, bits), **options)


def patch_policies() -> None:
    """Has timm's policies made from now on posterize so."""
    for name, operation in auto_augment.NAME_TO_OP.items():
        if operation is auto_augment.posterize:
            auto_augment.NAME_TO_OP[name] = posterize
