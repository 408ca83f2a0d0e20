"""The table of all data sets that are known by name, sirfp's own and those that a user's code has registered."""

from __future__ import annotations

from collections.abc import Iterable

from sirfp.data import sets  # noqa: F401  (fills the table)
from sirfp.data.data_set import DATA_SETS, DataSet
from sirfp.errors import InputError, near


def describe(name: str) -> DataSet:
    """The data set of a name: its own, that of one of its splits or a folder that it is known by, in any case.

    Raises:
        InputError: there is none.
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
    """The published labels of the classes of a split's data set; () where they are 0, 1, ... or it is not known."""
    known = _by_split().get(registered)
    return known.ids if known else ()


def _by_split() -> dict[str, DataSet]:
    return {split.registered: known for known in DATA_SETS.values() for split in known.splits}


def advice(names: Iterable[str]) -> str:
    """The commands that check the data sets of splits, as the end of a message; "" where sirfp knows none of them."""
    found = dict.fromkeys(
        known.name for known in DATA_SETS.values() for split in known.splits if split.registered in set(names)
    )
    return "".join(f"; run: sirfp data check {name}" for name in found)
