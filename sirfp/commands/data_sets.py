"""`sirfp data check NAME` and `sirfp data prepare NAME` for the public data sets that are used in configs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..reporting.progress import with_progress
from .arguments import at_least
from .outcome import Outcome

if TYPE_CHECKING:
    from ..data.survey import Fault, Survey

WHOLE = ("missing", "count")
"""Kinds of faults whose text is about a whole split; the text of other faults is about the first file."""
PREPARE_EXAMPLE = """examples:
  sirfp data prepare cityscapes
  sirfp data prepare coco_stuff_10k --workers 8"""


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `prepare`."""
    parser.add_argument("name", metavar="NAME", help="the data set; `sirfp data check` lists them")
    parser.add_argument("--workers", type=at_least(1), metavar="N", help="processes; one per CPU core by default")
    parser.add_argument("--force", action="store_true", help="make files again even if they are complete")


def prepare_set(args: argparse.Namespace) -> Outcome:
    """Makes the files that a data set needs before training."""
    from sirfp.data.descriptions import describe
    from sirfp.data.preparation import prepare
    from sirfp.data.splits import folder_of

    known = describe(args.name)
    done = prepare(known, workers=args.workers, force=args.force, follow=with_progress)
    folder = folder_of(known)
    data = {"name": known.name, "folder": str(folder), "made": done.made, "kept": done.kept}
    if not done.made + done.kept:
        return Outcome(data, [f"{known.title} needs no preparation; run: sirfp data check {known.name}"])
    counted = f"{folder}: {done.made} files made, {done.kept} were there and whole"
    return Outcome(data, [f"{counted}; run: sirfp data check {known.name}"])


def check_set(args: argparse.Namespace) -> Outcome:
    """Checks a data set; shows its files, its faults and its source."""
    from sirfp.data.descriptions import describe
    from sirfp.data.survey import DECODED, survey

    decoded = None if args.all else DECODED
    try:
        found = survey(describe(args.name), decoded=decoded, partial=args.partial, follow=with_progress)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    shown: list[Any] = [f"{found.known.title}, {found.known.classes} classes, in {found.folder}", _splits(found)]
    shown += map(_line, found.faults)
    if found.usable:
        return Outcome(_as_data(found), [*shown, f"usable: nothing wrong was found{_spared(found)}"])
    count = f"{len(found.faults)} fault{'s' if len(found.faults) > 1 else ''}"
    shown.append(f"It comes from {found.known.origin}.")
    return Outcome(_as_data(found), shown, f"{found.known.name} is not usable: {count}")


def list_sets() -> Outcome:
    """Lists all data sets with the numbers of their files; compares only file names."""
    from sirfp.data.descriptions import DATA_SETS
    from sirfp.data.survey import survey

    try:
        found = [survey(known, decoded=0) for known in DATA_SETS.values()]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return Outcome({"data_sets": [_as_data(one) for one in found]}, [_overview(found)])


def _overview(found: list[Survey]):
    from ..reporting.tables import Table

    rows = []
    for one in found:
        there = ", ".join(f"{state.split.name} {state.images}/{state.split.count}" for state in one.states)
        kinds = dict.fromkeys(fault.kind for fault in one.faults)
        rows.append((one.known.name, ", ".join(kinds) or f"complete{_spared(one)}", there, one.known.url))
    return Table(("data set", "state", "images", "from"), tuple(rows)).rich(numbers=False)


def _splits(found: Survey):
    from ..reporting.tables import Table

    rows = []
    for state in found.states:
        counts = (state.images, state.split.count, state.labels, state.decoded)
        rows.append((state.split.registered, *map(str, counts)))
    return Table(("split", "images", "of", "labelled", "decoded"), tuple(rows))


def _spared(found: Survey) -> str:
    absent = [state.split.name for state in found.states if not state.images and not state.split.needed]
    return f" ({', '.join(absent)} is not there, nor needed)" if absent else ""


def _line(fault: Fault) -> str:
    where = f"{fault.split}: " if fault.split else ""
    count = f", {fault.files} of them, the first" if fault.files > 1 and fault.kind not in WHOLE else ""
    return f"{where}{fault.kind}{count}: {fault.what}"


def _as_data(found: Survey) -> dict[str, Any]:
    return {
        "name": found.known.name,
        "folder": str(found.folder),
        "usable": found.usable,
        "classes": found.known.classes,
        "origin": found.known.origin,
        "splits": {
            state.split.name: {
                "registered": state.split.registered,
                "official": state.split.count,
                "images": state.images,
                "labelled": state.labels,
                "decoded": state.decoded,
            }
            for state in found.states
        },
        "faults": [
            {"split": fault.split, "kind": fault.kind, "files": fault.files, "what": fault.what}
            for fault in found.faults
        ],
    }
