"""Looks up data sets by name: the sets of sirfp, and sets that a user's code has registered."""

from __future__ import annotations

from collections.abc import Iterable

from sirfp.data import sets  # noqa: F401  (fills the table)
from sirfp.data.data_set import DATA_SETS, DataSet
from sirfp.errors import InputError, near


def describe(name: str) -> DataSet:
    """Returns the data set with this name, ignoring case.

    The name may also be the registered name of a split, or the name of a folder of the set.

    Raises:
        InputError: no data set has this name.
    """
    by_split = _by_split()
    folders = {folder: known for known in DATA_SETS.values() for folder in (known.folder, *known.aliases)}
    names = {key.lower(): known for key, known in (folders | by_split | DATA_SETS).items()}
    found = names.get(name.lower())
    if found is None:
        hint = near(name.lower(), [*DATA_SETS, *by_split])
        raise InputError(f"there is no data set {name!r}; known are {', '.join(DATA_SETS)}{hint}")
    return found


def published_ids(registered: str) -> tuple[int, ...]:
    """The published labels of the classes of a split's data set; () for labels 0, 1, ... and for unknown splits."""
    known = _by_split().get(registered)
    return known.ids if known else ()


def _by_split() -> dict[str, DataSet]:
    return {split.registered: known for known in DATA_SETS.values() for split in known.splits}


def advice(names: Iterable[str]) -> str:
    """The end of a message: commands that check the data sets of the named splits; "" if all splits are unknown."""
    found = dict.fromkeys(
        known.name for known in DATA_SETS.values() for split in known.splits if split.registered in set(names)
    )
    return "".join(f"; run: sirfp data check {name}" for name in found)
