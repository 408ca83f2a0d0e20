"""Arguments that `sirfp prune` and `sirfp sensitivity` share: the criterion, the limits and the calibration images."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..budget.limits import Limits
from ..errors import InputError
from ..reporting.progress import with_progress
from ..surgery.reconstruction import BATCHES
from .arguments import add_images, at_least
from .labelled_images import Loss, labelled_batches

if TYPE_CHECKING:
    from ..criteria import Criterion

CRITERIA_HELP = (
    "sirfp_setwise (the default) and sirfp (the paper's) need images; magnitude, slimming, fpgm, depgraph and random "
    "need only weights; taylor, dcfp and sirfp_joint need labels too: images in one folder per class for timm, the "
    "data set of DATASETS.TRAIN for Detectron2"
)

LOOK = {"reconstruction": BATCHES, "batches": 16, "batch": 8}
"""Defaults of the options of the images that are looked at."""


def add_criterion(group: argparse._ArgumentGroup) -> None:
    """Adds the criterion and its options."""
    group.add_argument("--criterion", metavar="NAME", help=f"what a channel is worth: {CRITERIA_HELP}")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the criterion, listed below; repeatable",
    )


def add_limits(group: argparse._ArgumentGroup) -> None:
    """Adds the limits of every plan."""
    group.add_argument(
        "--round-to",
        type=at_least(1),
        default=Limits.round_to,
        metavar="N",
        help="widths are multiples of it (default %(default)s)",
    )
    group.add_argument(
        "--min-keep",
        type=float,
        default=Limits.min_keep,
        metavar="SHARE",
        help="least share of its channels in the dense model that each group keeps (default %(default)s)",
    )
    group.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="a module, or a pattern, that stays whole: all channels that it makes and reads are kept; repeatable",
    )


def add_calibration(group: argparse._ArgumentGroup) -> None:
    """Adds the calibration images and the batches for refitting."""
    group.add_argument(
        "--reconstruction",
        type=at_least(0),
        default=LOOK["reconstruction"],
        metavar="N",
        help="batches of images for refitting layers to the channels that stay (default %(default)s; 0: no refitting)",
    )
    add_images(group, "images that criteria such as sirfp look at", count=LOOK["batches"], batch=LOOK["batch"])


def details() -> str:
    """The part of the help that lists the options of criteria."""
    from sirfp.criteria.registry import described

    lines = ["options of criteria:"]
    for name, criteria, default, values, meaning in described():
        lines.append(f"  {name}={default or '(none)'}  {values}; {criteria}")
        lines += textwrap.wrap(meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def read_options(criterion: type[Criterion], given: Iterable[str]) -> dict[str, Any]:
    """Parses KEY=VALUE options into arguments of a criterion's constructor.

    Raises:
        InputError: the criterion has no such option, the value is not valid, or the criterion is not complete.
    """
    criterion.check_complete()
    known, options = criterion.options(), {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option takes KEY=VALUE, got {text!r}")
        options[key] = known[key].from_text(value, f"option {key}") if key in known else value
    return criterion.check_options(options)


def read_widths(given: Iterable[str]) -> dict[str, float]:
    """Parses NAME=WIDTH, where a WIDTH without a point is a number of channels.

    Raises:
        InputError: a text has another form.
    """
    widths: dict[str, float] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            widths[name] = int(value) if value.strip().isdecimal() else float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise InputError(f"--keep takes NAME=SHARE or NAME=CHANNELS, such as layer3.*=0.5, got {text!r}")
    return widths


def read_calibration(args: argparse.Namespace, source, needs: str) -> tuple[Iterable[Any] | None, Loss | None]:
    """The batches for a criterion, and the loss if the criterion needs gradients.

    Without --images, batches of a model of Detectron2 are those of its data set.
    """
    if needs == "weights" and not args.images:
        return None, None
    if needs == "gradients" or not args.images:
        batches, loss = labelled_batches(args, source)
    else:
        batches, loss = source.batches(args.images, args.batches, args.batch, args.seed), None
    return with_progress(batches, "looking at images", args.batches), loss
