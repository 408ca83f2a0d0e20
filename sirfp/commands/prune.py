"""`sirfp prune`: one-shot pruning from a checkpoint."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..budget.evidence import WIDTHS
from ..budget.limits import Limits, check_share
from ..budget.target import KEEP_FLOPS, Target
from ..criteria.calibration import default_criterion
from ..errors import InputError
from ..reporting.progress import with_progress
from ..surgery.reconstruction import BATCHES
from .arguments import (
    MODEL_USAGE,
    OPTS_USAGE,
    add_images,
    add_model,
    at_least,
    build_source,
    check_writable,
    in_flags,
    need_model,
    split_words,
)
from .labelled_images import Loss, labelled_batches
from .outcome import Outcome
from .recorded import origin_of

if TYPE_CHECKING:
    from ..criteria import Criterion

USAGE = f"sirfp prune {MODEL_USAGE} [--weights FILE] [--images FOLDER] -o FILE [options] {OPTS_USAGE}"
EXAMPLE = """example:
  sirfp prune --timm resnet18 --weights resnet18.pth --images photos --keep-flops 0.5 -o small.safetensors"""

CRITERIA_HELP = (
    "sirfp_setwise (the default) and sirfp (the paper's) need images; magnitude, slimming, fpgm, depgraph and random "
    "need only weights; taylor, dcfp and sirfp_joint need labels too: images in one folder per class for timm, the "
    "data set of DATASETS.TRAIN for Detectron2"
)


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    add_model(parser)
    group = parser.add_argument_group("pruning")
    group.add_argument("-o", "--output", metavar="FILE", required=True, help="the pruned file, *.safetensors")
    group.add_argument(
        "--keep-flops",
        type=float,
        metavar="SHARE",
        help=f"share of the FLOPs that stay, in (0, 1] (default {KEEP_FLOPS} if no other budget is given)",
    )
    group.add_argument("--keep-params", type=float, metavar="SHARE", help="share of the parameters that stay")
    group.add_argument(
        "--keep-latency",
        type=float,
        metavar="SHARE",
        help="share of the latency that stays: PyTorch's time for one image, measured on this machine",
    )
    group.add_argument("--criterion", metavar="NAME", help=f"what a channel is worth: {CRITERIA_HELP}")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the criterion, listed below; repeatable",
    )
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
        help="least share of channels that each group keeps (default %(default)s)",
    )
    group.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="a module, or a pattern, whose output channels are all kept (its inputs may be cut); repeatable",
    )
    group.add_argument(
        "--no-bias-correction", action="store_true", help="do not add the mean output of removed channels to biases"
    )
    group.add_argument(
        "--reconstruction",
        type=at_least(0),
        default=BATCHES,
        metavar="N",
        help="batches of images for refitting layers to the channels that stay (default %(default)s; 0: no refitting)",
    )
    add_images(group, "images that criteria such as sirfp look at", count=16, batch=8)
    parser.add_argument("--verbose", action="store_true", help="also list layers that cannot be pruned, and why")


def details() -> str:
    """The part of the help that lists the options of criteria."""
    from sirfp.criteria.registry import described

    lines = ["options of criteria:"]
    for name, criteria, default, values, meaning in described():
        lines.append(f"  {name}={default or '(none)'}  {values}; {criteria}")
        lines += textwrap.wrap(meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def run(args: argparse.Namespace) -> Outcome:
    """Prunes and writes the file."""
    import sirfp
    from sirfp.criteria import CRITERIA
    from sirfp.reporting import tables

    _, opts = split_words(args.words, file=False)
    budgets = {"--keep-flops": args.keep_flops, "--keep-params": args.keep_params, "--keep-latency": args.keep_latency}
    Target.of(KEEP_FLOPS, **budgets)  # checks the budgets; error messages name the flags
    check_share("--min-keep", args.min_keep, zero=True)
    check_writable(args.output)
    args.criterion = args.criterion or default_criterion()
    criterion = CRITERIA.find(args.criterion)
    options = read_options(criterion, args.option)
    if criterion.needs in ("features", "moments") and not (args.images or args.config_file or args.zoo):
        raise InputError(
            f"criterion {args.criterion!r} looks at images: give --images FOLDER, or --criterion magnitude"
        )
    source = need_model(build_source(args, opts))
    source.check()
    calibration, loss = _calibration(args, source, criterion.needs)
    with in_flags(MIN_KEEP="--min-keep", ROUND_TO="--round-to", IGNORE="--ignore"):
        plan = sirfp.prune(
            source.model,
            source.example(),
            args.criterion,
            calibration=calibration,
            keep_flops=args.keep_flops,
            keep_params=args.keep_params,
            keep_latency=args.keep_latency,
            loss=loss,
            bias_correction=not args.no_bias_correction,
            reconstruction=args.reconstruction,
            widths=args.widths,
            steps=args.steps,
            ignore=args.ignore,
            round_to=args.round_to,
            seed=args.seed,
            min_keep=args.min_keep,
            **options,
        )
    sirfp.save(args.output, source.model, plan, origin=origin_of(args, opts, source))
    found = tables.summary(plan)
    data = {"file": args.output, "model": source.name, "size": list(source.size), "weights": source.weights}
    shown: list[Any] = [*tables.budget_line(found), tables.comparison(found.rows()), tables.widths(found.widths)]
    if args.verbose and found.frozen:
        shown.append(tables.frozen(found.frozen))
    if source.weights is None:
        shown.append("The dense weights were random: give --weights FILE to prune a trained model.")
    bytes_ = os.path.getsize(args.output)
    shown.append(f"Wrote {args.output}, {tables.size(bytes_)}.")
    return Outcome({**data, "file_bytes": bytes_, **found.to_dict()}, shown)


def read_options(criterion: type[Criterion], given: Iterable[str]) -> dict[str, Any]:
    """Parses KEY=VALUE options into arguments of a criterion's constructor.

    Raises:
        InputError: the criterion has no such option, or the value is not valid.
    """
    known, options = criterion.options(), {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--option takes KEY=VALUE, got {text!r}")
        options[key] = known[key].from_text(value, f"option {key}") if key in known else value
    return criterion.check_options(options)


def _calibration(args: argparse.Namespace, source, needs: str) -> tuple[Iterable[Any] | None, Loss | None]:
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
