"""timm's augmentation policies: checks their names, and makes them work with every version of Pillow.

Strong policies, such as "rand-m9-mstd0.5-inc1", sometimes posterize an image to 0 bits. With Pillow below 13 the result
is a black image, from Pillow 13 on an error (timm 1.0.31). Here at least one bit is kept.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import auto_augment, create_transform

from sirfp.errors import InputError


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Like timm's posterize, but keeps at least one bit of each value."""
    return auto_augment.posterize(image, max(1, bits), **options)


def patch_policies() -> None:
    """Makes timm use this `posterize` in all policies that are built after this call."""
    for name, operation in auto_augment.NAME_TO_OP.items():
        if operation is auto_augment.posterize:
            auto_augment.NAME_TO_OP[name] = posterize


def check_policy(policy: str) -> None:
    """Raises InputError if timm has no such augmentation policy (INPUT.AUGMENT.POLICY); an empty name means none."""
    if not policy:
        return
    try:
        create_transform(32, is_training=True, auto_augment=policy)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        why = f" ({error})" if str(error) else ""
        raise InputError(
            f"INPUT.AUGMENT.POLICY {policy!r} is no augmentation policy of timm{why}; it may be, for example, "
            "'rand-m9-mstd0.5-inc1' (RandAugment), 'augmix-m5-w3', 'original' (AutoAugment) or '3a'"
        ) from error
