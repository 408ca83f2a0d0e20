"""Remarks on label maps that are valid but probably not meant: ignored pixels, and classes that do not occur."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np

IGNORED = 0.5
"""A larger share of ignored pixels is remarked."""
NAMED = 5
"""Largest number of classes that a remark names."""


def label_remarks(counts: np.ndarray, classes: Sequence[str], ignore: int, maps: int) -> list[str]:
    """Describes what label maps lack, in at most two lines.

    Args:
        counts: the number of pixels of each class, and last that of ignored pixels, (classes + 1,).
        classes: names of the classes.
        ignore: the label value of ignored pixels.
        maps: the number of label maps that were read.
    """
    share = counts[-1] / max(1, counts.sum())
    ignored = f"{share:.0%} of the pixels are {ignore}, which is ignored"
    absent = [name for name, count in zip(classes, counts[:-1], strict=True) if not count]
    if len(absent) == len(classes):
        return [f"every pixel of the {maps} label maps read is {ignore}, which is ignored: nothing can be learned"]
    found = []
    if absent:
        named = ", ".join(map(repr, absent[:NAMED])) + (f" and {len(absent) - NAMED} more" if absent[NAMED:] else "")
        one = len(absent) == 1
        text = (
            f"{'class' if one else 'classes'} {named} {'has' if one else 'have'} no pixel in the {maps} label maps read"
        )
        if counts[-1]:
            text += f"; {ignored}: if {ignore} is meant as a class, write its index or choose another ignore value"
        found.append(text)
    elif share > IGNORED:
        found.append(f"{ignored}: only the other {1 - share:.0%} can be learned")
    return found


def log_remarks(name: str, remarks: Iterable[str]) -> None:
    """Logs remarks on a data set as warnings."""
    for remark in remarks:
        logging.getLogger("sirfp").warning(f"Data set {name!r}: {remark}")
