"""`sirfp sensitivity`: what a model loses if single groups of channels get narrower."""

from __future__ import annotations

import argparse
from typing import Any

from ..budget.curves import LEVELS
from ..budget.limits import check_share
from ..criteria.calibration import default_criterion
from ..errors import InputError
from ..files.whole import whole_file
from .arguments import (
    MODEL_USAGE,
    OPTS_USAGE,
    add_model,
    build_source,
    check_writable,
    file_and_pairs,
    in_flags,
    need_model,
    note_if_random,
)
from .calibration import add_calibration, add_criterion, add_limits, details, read_calibration, read_options
from .device import add_device, check_device, place
from .outcome import Outcome

__all__ = ["EXAMPLE", "USAGE", "add", "details", "run"]

USAGE = f"sirfp sensitivity {MODEL_USAGE} [--weights FILE] [--images FOLDER] [options] {OPTS_USAGE}"
EXAMPLE = """example:
  sirfp sensitivity --timm resnet18 --weights resnet18.pth --images photos --plot curves.png --csv curves.csv"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    add_model(parser)
    group = parser.add_argument_group("measurement")
    add_criterion(group)
    group.add_argument(
        "--levels",
        type=float,
        nargs="+",
        default=list(LEVELS),
        metavar="SHARE",
        help=f"shares of a group's channels at which it is measured (default {' '.join(map(str, LEVELS))})",
    )
    add_limits(group)
    add_calibration(group)
    add_device(group, "the network runs")
    group = parser.add_argument_group("results")
    group.add_argument(
        "--cache",
        metavar="FILE",
        help="keep the curves of finished groups in this file: the same command then goes on where it was interrupted",
    )
    group.add_argument("--csv", metavar="FILE", help="write each measured width of each group to this file")
    group.add_argument("--plot", metavar="FILE", help="draw the curves to this file, *.png")


def run(args: argparse.Namespace) -> Outcome:
    """Measures the curves; prints a table and writes files."""
    import sirfp
    from sirfp.budget.sensitivity import csv_text, ranked, table
    from sirfp.criteria import CRITERIA
    from sirfp.network.channels_last import use_channels_last_if_possible
    from sirfp.reporting import figures
    from sirfp.sensitivity import check_levels

    _, opts = file_and_pairs(args, file=False)
    levels = check_levels(args.levels, "--levels")
    check_share("--min-keep", args.min_keep, zero=True)
    check_device(args.device)
    for path in filter(None, (args.csv, args.plot, args.cache)):
        check_writable(path)
    args.criterion = args.criterion or default_criterion()
    criterion = CRITERIA.find(args.criterion)
    options = read_options(criterion, args.option)
    if not (args.images or args.config_file or args.zoo):
        raise InputError("loss curves are measured on images: give --images FOLDER")
    source = place(need_model(build_source(args, opts)), args.device)
    source.check()
    note_if_random(source)
    if args.device == "cpu":
        use_channels_last_if_possible(source.model, source.example())  # networks run faster so on processors
    calibration, loss = read_calibration(args, source, "features" if criterion.needs == "weights" else criterion.needs)
    with in_flags(MIN_KEEP="--min-keep", ROUND_TO="--round-to", IGNORE="--ignore"):
        measured = sirfp.sensitivity(
            source.model,
            source.example(),
            args.criterion,
            calibration=calibration,
            levels=levels,
            loss=loss,
            reconstruction=args.reconstruction,
            ignore=args.ignore,
            round_to=args.round_to,
            seed=args.seed,
            min_keep=args.min_keep,
            cache=args.cache,
            **options,
        )
    height, width = source.size
    shown: list[Any] = [
        f"{source.name} on {height} x {width} pixels: divergence from the dense network's output, in nats, if one "
        "group alone keeps a share of its channels. The most sensitive group comes first.",
        table(measured, levels),
    ]
    if source.weights is None:
        shown.append("The weights were random: give --weights FILE to measure a trained model.")
    if args.csv:
        with whole_file(args.csv) as beside:
            beside.write_text(csv_text(measured))
        shown.append(f"Wrote {args.csv}.")
    if args.plot:
        figures.loss_curves({one.group: one.points() for one in ranked(measured)}, args.plot, source.name)
        shown.append(f"Wrote {args.plot}.")
    data = {"model": source.name, "size": list(source.size), "weights": source.weights, "criterion": args.criterion}
    return Outcome({**data, "levels": list(levels), "groups": [one.to_json() for one in measured]}, shown)
