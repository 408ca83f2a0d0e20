"""Labels: class indices 0, 1, ..., the value of pixels that do not count, and tables from published ids to them."""

from functools import lru_cache

import numpy as np

IGNORE = 255
"""The label value of pixels that are neither learned nor evaluated."""


def split_names(text: str) -> tuple[str, ...]:
    """Names that are separated by commas, over any number of lines."""
    return tuple(" ".join(name.split()) for name in text.split(","))


@lru_cache
def lookup(trained: tuple[int, ...], ids: range) -> np.ndarray:
    """What label ids become: (65536,) integers; the place of an id in `trained`, 255 for the rest of `ids`, else -1."""
    table = np.full(1 << 16, -1, dtype=np.int16)
    table[ids.start : ids.stop] = IGNORE
    table[list(trained)] = range(len(trained))
    return table
