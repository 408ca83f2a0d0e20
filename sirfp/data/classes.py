"""Labels: class indices 0, 1, ..., the value of ignored pixels, and tables from published ids to class indices."""

from functools import lru_cache

import numpy as np

IGNORE = 255
"""Label value of pixels that are ignored in training and evaluation."""


def split_names(text: str) -> tuple[str, ...]:
    """Splits a text of one or more lines into names separated by commas."""
    return tuple(" ".join(name.split()) for name in text.split(","))


@lru_cache
def lookup(trained: tuple[int, ...], ids: range) -> np.ndarray:
    """Makes the table from label ids to class indices.

    Returns:
        (65536,) integers. For an id of `trained`, its position there; 255 for the other ids of `ids`; -1 for all other
        numbers.
    """
    table = np.full(1 << 16, -1, dtype=np.int16)
    table[ids.start : ids.stop] = IGNORE
    table[list(trained)] = range(len(trained))
    return table
