"""Labels: class indices 0, 1, ..., the value of ignored pixels, and tables from published ids to class indices."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest

import numpy as np

from sirfp.errors import InputError

IGNORE = 255
"""Label value of pixels that are ignored in training and evaluation."""


def split_names(text: str) -> tuple[str, ...]:
    """Splits a text of one or more lines into names separated by commas."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def check_same_classes(sets: Mapping[str, Sequence[str]], remedy: str) -> None:
    """Checks that data sets of one run have the same classes in the same order.

    Args:
        sets: {name of a data set: names of its classes}; the first set is compared with all others.
        remedy: what to do otherwise, for the message.

    Raises:
        InputError: a class index means different classes in two sets.
    """
    first = next(iter(sets), "")
    for name, there in sets.items():
        for i, (expected, found) in enumerate(zip_longest(sets[first], there)):
            if expected != found:
                raise InputError(
                    f"data sets {first!r} and {name!r} have other classes: class {i} is {_quoted(expected)} and "
                    f"{_quoted(found)}; {remedy}"
                )


def _quoted(name: str | None) -> str:
    return "missing" if name is None else repr(name)


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
