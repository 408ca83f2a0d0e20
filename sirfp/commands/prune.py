"""`sirfp prune`: one-shot pruning from a checkpoint, or further pruning of a pruned file."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..budget.evidence import WIDTHS
from ..budget.limits import Limits, check_share
from ..budget.target import KEEP_FLOPS, Target
from ..criteria.calibration import default_criterion
from ..errors import InputError
from ..reporting.progress import stage
from .arguments import (
    MODEL_USAGE,
    OPTS_USAGE,
    add_model,
    at_least,
    build_source,
    check_untouched,
    check_writable,
    file_and_pairs,
    in_flags,
    need_model,
    note_if_random,
    share,
)
from .calibration import (
    CRITERIA_HELP,
    LOOK,
    add_calibration,
    add_criterion,
    add_limits,
    details,
    read_calibration,
    read_options,
    read_widths,
)
from .device import add_device, add_trial_device, check_device, place
from .outcome import Outcome
from .recorded import complete, origin_of, restore_as_named

__all__ = ["CRITERIA_HELP", "EXAMPLE", "USAGE", "add", "details", "run"]

USAGE = f"sirfp prune [FILE | {MODEL_USAGE}] [--weights FILE] [--images FOLDER] -o FILE [options] {OPTS_USAGE}"
EXAMPLE = """example:
  sirfp prune --timm resnet18 --weights resnet18.pth --images photos --keep-flops 0.5 -o small.safetensors
  sirfp prune small.safetensors --images photos --keep-flops 0.3 -o smaller.safetensors"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    add_model(parser)
    group = parser.add_argument_group("pruning")
    group.add_argument("-o", "--output", metavar="FILE", required=True, help="the pruned file, *.safetensors")
    group.add_argument(
        "--keep-flops",
        type=share,
        metavar="SHARE",
        help="share of the dense model's FLOPs that stay, in (0, 1], also of a pruned FILE "
        f"(default {KEEP_FLOPS} if no other budget and no --keep is given)",
    )
    group.add_argument(
        "--keep-params", type=share, metavar="SHARE", help="share of the dense model's parameters that stay"
    )
    group.add_argument(
        "--keep-latency",
        type=share,
        metavar="SHARE",
        help="share of the dense model's latency that stays: the time for one image on --device of this machine",
    )
    group.add_argument(
        "--latency-runtime",
        choices=("pytorch", "onnxruntime"),
        default="pytorch",
        help="where --keep-latency is measured (default pytorch, in eager mode)",
    )
    add_criterion(group)
    group.add_argument(
        "--widths",
        choices=WIDTHS,
        help="how the number of channels of each layer is decided: by the measured loss of the output, on images that "
        "are held back, or by one ranking of all scores (default: curves for sirfp_setwise, else ranking)",
    )
    group.add_argument(
        "--steps",
        type=at_least(1),
        metavar="N",
        help="number of cuts in which the budget is reached, each measured anew (default: as many as keep each cut "
        "small with --widths curves, else 1)",
    )
    add_limits(group)
    group.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="NAME=WIDTH",
        help="a layer, or a pattern, and the channels that it keeps: a share such as 0.5 (1.0 for all) or a number "
        "such as 64; the budget decides all other widths, without one they stay; repeatable",
    )
    group.add_argument(
        "--no-bias-correction", action="store_true", help="do not add the mean output of removed channels to biases"
    )
    add_calibration(group)
    add_device(group, "the network is looked at, timed for --keep-latency, and refitted")
    add_trial_device(group)
    parser.add_argument("--verbose", action="store_true", help="also list layers that cannot be pruned, and why")


def run(args: argparse.Namespace) -> Outcome:
    """Prunes and writes the file."""
    import sirfp
    from sirfp.checkpoint.pruned import OTHERS, read
    from sirfp.criteria import CRITERIA
    from sirfp.exporting.clock import clock_named
    from sirfp.network.channels_last import use_channels_last_if_possible
    from sirfp.reporting import tables

    file, opts = file_and_pairs(args, file=True)
    given = args
    args, opts, _ = complete(args, opts, file)
    budgets = {"--keep-flops": args.keep_flops, "--keep-params": args.keep_params, "--keep-latency": args.keep_latency}
    clock = clock_named(args.latency_runtime, "--latency-runtime")
    Target.of(KEEP_FLOPS, clock, **budgets)  # checks the budgets; error messages name the flags
    check_share("--min-keep", args.min_keep, zero=True)
    check_device(args.device)
    if args.trial_device is not None:
        check_device(args.trial_device, "--trial-device")
    if args.steps and args.keep and all(budget is None for budget in budgets.values()):
        raise InputError("--steps divides the way to a budget, but --keep alone cuts at once: give a budget, too")
    keep = read_widths(args.keep)
    with in_flags(KEEP="--keep"):
        Limits(keep=keep)  # checks the widths before the model is built
    if args.output.endswith(OTHERS):
        then = "; `sirfp export` then writes the .onnx file" if args.output.endswith(".onnx") else ""
        raise InputError(f"-o {args.output}: give the file the ending .safetensors{then}")
    check_writable(args.output)
    replaced = os.path.exists(args.output)
    args.criterion = args.criterion or default_criterion()
    criterion = CRITERIA.find(args.criterion)
    options = read_options(criterion, args.option)
    source = place(need_model(build_source(args, opts, file)), args.device)
    if criterion.needs in ("features", "moments") and not (args.images or args.config_file or args.zoo):
        raise InputError(
            f"criterion {args.criterion!r} looks at images: give --images FOLDER, or --criterion magnitude"
        )
    if criterion.needs == "weights" and not args.images:
        check_untouched(args, "--images", **LOOK)
    source.check()
    before = None
    if file:
        before, state = read(file)
        restore_as_named(source.model, before, state, file, given)
        source.weights = file
    else:
        note_if_random(source)
    if args.device == "cpu":
        use_channels_last_if_possible(source.model, source.example())  # networks run faster so on processors
    calibration, loss = read_calibration(args, source, criterion.needs)
    stage("finding groups of channels")
    with in_flags(MIN_KEEP="--min-keep", ROUND_TO="--round-to", IGNORE="--ignore", KEEP="--keep"):
        plan = sirfp.prune(
            source.model,
            source.example(),
            args.criterion,
            calibration=calibration,
            keep_flops=args.keep_flops,
            keep_params=args.keep_params,
            keep_latency=args.keep_latency,
            clock=clock,
            loss=loss,
            bias_correction=not args.no_bias_correction,
            reconstruction=args.reconstruction,
            widths=args.widths,
            steps=args.steps,
            ignore=args.ignore,
            keep=keep,
            round_to=args.round_to,
            trial_device=args.trial_device,
            seed=args.seed,
            min_keep=args.min_keep,
            **options,
        )
    sirfp.save(args.output, source.model, plan, origin=origin_of(args, opts, source))
    found = tables.summary(plan)
    data = {"file": args.output, "model": source.name, "size": list(source.size), "weights": source.weights}
    shown: list[Any] = []
    if before is not None and plan.kept == before.kept:
        shown.append(f"Nothing was cut: {file} meets this budget already, which is a share of the dense model.")
    shown += [*tables.budget_line(found), tables.comparison(found.rows()), tables.widths(found.widths)]
    if args.verbose and found.frozen:
        shown.append(tables.frozen(found.frozen))
    if source.weights is None:
        shown.append("The dense weights were random: give --weights FILE to prune a trained model.")
    bytes_ = os.path.getsize(args.output)
    instead = " in place of an earlier file" if replaced else ""
    shown.append(f"Wrote {args.output}, {tables.size(bytes_)}{instead}.")
    return Outcome({**data, "file_bytes": bytes_, **found.to_dict()}, shown)
