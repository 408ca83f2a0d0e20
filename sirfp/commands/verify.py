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
    file_and_pairs,
    need_model,
)
from .device import add_device, check_device, place
from .outcome import Outcome
from .recorded import restore_as_named

if TYPE_CHECKING:  # `sirfp --help` does not import PyTorch
    from torch import nn

    from ..structure.plan import PruningPlan
    from ..verify.rounding import Compared, Judgement

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

    file, opts = file_and_pairs(args, file=True)
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
        judged, compared, count = _worst(source.model, pruned, plan, batches, args.tolerance)
    worst, effect = judged.difference, judged.effect
    data: dict[str, Any] = {
        "file": file,
        "model": source.name,
        "relative_difference": None if worst.problem else worst.relative,
        "where": worst.where,
        "problem": worst.problem,
        "compared": compared,
        "batches": count,
        "tolerance": args.tolerance,
        "rounding": effect,
        "equal": judged.equal,
    }
    difference = worst.problem or f"largest relative difference {worst.relative:.2g}, in {worst.where}"
    limit = f"tolerance {args.tolerance:g}"
    if effect is not None:
        limit += f"; weights changed by a few units in the last place make {effect:.2g}"
    if not judged.equal:
        return Outcome(data, [], f"{file} differs from the masked dense model: {difference} ({limit})")
    where = worst.where or "any output"
    largest = f"largest relative difference {worst.relative:.2g}, in {where}; {limit}"
    if effect is not None:
        largest += ", so it is rounding"
    return Outcome(
        data,
        [
            f"OK: {file} gives the outputs of the dense {source.name} with the removed channels set to zero "
            f"({largest}).",
            f"Compared: {compared}.",
        ],
    )


def _worst(
    dense: nn.Module, pruned: nn.Module, plan: PruningPlan, batches: Iterable[Any], tolerance: float
) -> tuple[Judgement, str, int]:
    """Compares two models batch by batch; stops at a problem, such as a missing output or a difference.

    Returns:
        The judgement of the batch with the largest difference, or of the first one that is not equal, a description of
        the compared outputs, and the number of batches.
    """
    from sirfp.verify import Difference
    from sirfp.verify.detectors import compare_continuous, comparison_for
    from sirfp.verify.rounding import Judgement, judge

    worst, said, count = Judgement(True, Difference(0.0, "")), "every output", 0
    compared: Compared | None = None
    for count, inputs in enumerate(batches, 1):  # noqa: B007
        if compared is None:
            compared = comparison_for(dense, inputs)
            if compared is compare_continuous:
                said = "scores, box deltas, masks and maps of every head, on the same boxes"
        judged = judge(dense, pruned, inputs, plan, compared, tolerance)
        if not judged.equal:
            return judged, said, count
        if judged.difference.relative > worst.difference.relative:
            worst = judged
    return worst, said, count
