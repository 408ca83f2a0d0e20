"""`sirfp verify`: the pruned model equals the dense one that holds its weights and zeros elsewhere."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from .arguments import (
    MODEL_USAGE,
    OPTS_USAGE,
    add_images,
    add_model,
    add_tolerance,
    build_source,
    check_tolerance,
    need_model,
    split_words,
)
from .outcome import Outcome, followed

USAGE = f"sirfp verify FILE {MODEL_USAGE} [--images FOLDER] [options] {OPTS_USAGE}"
EXAMPLE = """example:
  sirfp verify small.safetensors --timm resnet18"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_model(parser)
    add_images(parser, "run on these images; by default on random ones", count=2, batch=1)
    add_tolerance(parser, 1e-4, "from the masked dense model")


def run(args: argparse.Namespace) -> Outcome:
    """Builds both models, runs them and compares."""
    from sirfp.channels.find import find_groups
    from sirfp.checkpoint.pruned import read, restore
    from sirfp.verify import expand

    file, opts = split_words(args.words, file=True)
    if not file:
        raise InputError("name the pruned FILE to verify")
    check_tolerance(args.tolerance)
    plan, state = read(file)
    source = need_model(build_source(args, opts))
    pruned = source.fresh()
    restore(pruned, plan, state, file)
    source.check()
    found = find_groups(source.model, source.example(), trial=False)
    cut = {name for name, kept in plan.kept.items() if len(kept) < plan.channels[name]}
    inexact = {group.name: group.inexact for group in found if group.inexact and group.name in cut}
    expand(source.model, plan, state)
    if args.images:
        batches = source.batches(args.images, args.batches, args.batch, args.seed)
    else:
        batches = (source.example(args.batch, args.seed + i) for i in range(args.batches))
    worst, compared, count = _worst(source.model, pruned, plan, followed(batches, "comparing", args.batches))
    data: dict[str, Any] = {
        "file": file,
        "model": source.name,
        "relative_difference": None if worst.problem else worst.relative,
        "where": worst.where,
        "problem": worst.problem,
        "compared": compared,
        "batches": count,
        "tolerance": args.tolerance,
        "inexact": inexact,
    }
    said = worst.problem or f"largest relative difference {worst.relative:.2g}, in {worst.where}"
    if inexact:
        names = ", ".join(inexact)
        shown = [
            f"Not comparable: {len(inexact)} of {len(cut)} pruned groups go through norms that take statistics over "
            f"channels, so removing a channel is not the same as zeroing it: {names}",
            f"For information: {said}.",
        ]
        return Outcome({**data, "equal": None}, shown)
    equal = not worst.problem and worst.relative <= args.tolerance
    data["equal"] = equal
    if not equal:
        return Outcome(data, [], f"{file} differs from the masked dense model: {said} (tolerance {args.tolerance:g})")
    where = worst.where or "any output"
    largest = f"largest relative difference {worst.relative:.2g}, in {where}; tolerance {args.tolerance:g}"
    return Outcome(
        data,
        [f"{file} equals the masked dense model of {source.name} ({largest}).", f"Compared: {compared}."],
    )


def _worst(dense, pruned, plan, batches) -> tuple[Any, str, int]:
    """The largest difference over all batches, what was compared, and how many batches there were."""
    from sirfp.network.forward import call, inference
    from sirfp.verify import Difference, compare
    from sirfp.verify.detectors import compare_continuous, is_detector

    worst, compared, detector, count = Difference(0.0, ""), "every output", None, 0
    for count, inputs in enumerate(batches, 1):  # noqa: B007
        if detector is None:
            with inference(dense):
                detector = is_detector(call(dense, inputs))
        if detector:
            compared = "scores, box shifts, masks and maps of every head, on the same boxes"
            found = compare_continuous(dense, pruned, inputs, plan)
        else:
            found = compare(dense, pruned, inputs)
        if found.problem or not found.relative <= worst.relative:
            worst = found
        if found.problem:
            break
    return worst, compared, count
