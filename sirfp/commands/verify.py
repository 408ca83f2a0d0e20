"""`sirfp verify`: checks that a pruned model equals the dense model with the removed channels set to zero.

Statistics over channels, such as those of a layer norm, are taken over the kept channels in both models.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..reporting.progress import with_progress
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
from .device import add_device, check_device, place
from .outcome import Outcome
from .recorded import restore_as_named

if TYPE_CHECKING:  # `sirfp --help` does not import PyTorch
    from torch import nn

    from ..structure.plan import PruningPlan
    from ..verify import Difference

USAGE = f"sirfp verify FILE [{MODEL_USAGE[1:-1]}] [--images FOLDER] [options] {OPTS_USAGE}"
EXAMPLE = """examples:
  sirfp verify small.safetensors
  sirfp verify small.safetensors --timm resnet18    for a file that does not record its model"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    add_model(parser)
    add_images(parser, "compare outputs for these images; by default random ones", count=2, batch=1)
    add_tolerance(parser, 1e-4, "from the masked dense model")
    add_device(parser, "both models run")


def run(args: argparse.Namespace) -> Outcome:
    """Builds both models and compares their outputs."""
    from torch.backends import cudnn

    from sirfp.checkpoint.pruned import read
    from sirfp.verify import expand

    file, opts = split_words(args.words, file=True)
    if not file:
        raise InputError("name the pruned FILE to verify")
    check_tolerance(args.tolerance)
    check_device(args.device)
    plan, state = read(file)
    source = place(need_model(build_source(args, opts, file)), args.device)
    pruned = source.fresh()
    restore_as_named(pruned, plan, state, file, args)
    source.check()
    expand(source.model, plan, state)
    if args.images:
        batches = source.batches(args.images, args.batches, args.batch, args.seed)
    else:
        batches = (source.example(args.batch, args.seed + i) for i in range(args.batches))
    batches = with_progress(batches, "comparing", args.batches)
    with cudnn.flags(enabled=cudnn.enabled, allow_tf32=False):  # TF32 rounds inputs of convolutions to 10 bits
        worst, compared, count = _worst(source.model, pruned, plan, batches)
    data: dict[str, Any] = {
        "file": file,
        "model": source.name,
        "relative_difference": None if worst.problem else worst.relative,
        "where": worst.where,
        "problem": worst.problem,
        "compared": compared,
        "batches": count,
        "tolerance": args.tolerance,
    }
    difference = worst.problem or f"largest relative difference {worst.relative:.2g}, in {worst.where}"
    equal = not worst.problem and worst.relative <= args.tolerance
    data["equal"] = equal
    if not equal:
        return Outcome(
            data, [], f"{file} differs from the masked dense model: {difference} (tolerance {args.tolerance:g})"
        )
    where = worst.where or "any output"
    largest = f"largest relative difference {worst.relative:.2g}, in {where}; tolerance {args.tolerance:g}"
    return Outcome(
        data,
        [
            f"OK: {file} gives the outputs of the dense {source.name} with the removed channels set to zero "
            f"({largest}).",
            f"Compared: {compared}.",
        ],
    )


def _worst(
    dense: nn.Module, pruned: nn.Module, plan: PruningPlan, batches: Iterable[Any]
) -> tuple[Difference, str, int]:
    """Compares two models batch by batch; stops at a problem, such as a missing output.

    Returns:
        The largest difference, a description of the compared outputs, and the number of batches.
    """
    from sirfp.network.forward import call, inference
    from sirfp.verify import Difference, compare
    from sirfp.verify.detectors import compare_continuous, is_detector

    worst, compared, count = Difference(0.0, ""), "every output", 0
    detector: bool | None = None
    for count, inputs in enumerate(batches, 1):  # noqa: B007
        if detector is None:
            with inference(dense):
                detector = is_detector(call(dense, inputs))
        if detector:
            compared = "scores, box deltas, masks and maps of every head, on the same boxes"
            found = compare_continuous(dense, pruned, inputs, plan)
        else:
            found = compare(dense, pruned, inputs, plan)
        if found.problem or not found.relative <= worst.relative:
            worst = found
        if found.problem:
            break
    return worst, compared, count
