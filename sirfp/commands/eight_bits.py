"""The part of `sirfp export` that writes int8 files: calibration, and the comparison with the file of floats."""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..reporting.progress import with_progress
from .arguments import at_least, check_untouched
from .labelled_images import classes_of
from .outcome import Outcome

if TYPE_CHECKING:  # `sirfp --help` does not import PyTorch
    import torch

    from ..exporting import Exported
    from ..exporting.eight_bits_accuracy import Accuracy
    from ..network.latency import Latency
    from ..sources.source import Source

CALIBRATE, COMPARE = 128, 256
"""Default numbers of images for calibration and comparison."""
REPEATS = 21
"""Timed calls of each file."""


def add_int8(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of int8 files."""
    group = parser.add_argument_group("8-bit integers")
    group.add_argument(
        "--int8",
        action="store_true",
        help="write weights and activations as 8-bit integers, calibrated on --images; accuracy and latency are "
        "compared with the file of floats",
    )
    group.add_argument(
        "--calibrate",
        type=at_least(1),
        default=CALIBRATE,
        metavar="N",
        help="images for calibration, at most half of those in the folder (default %(default)s)",
    )
    group.add_argument(
        "--compare",
        type=at_least(1),
        default=COMPARE,
        metavar="N",
        help="other images on which int8 and floats are compared (default %(default)s)",
    )
    group.add_argument(
        "--reduce-range", action="store_true", help="weights of 7 bits, for x86 processors without VNNI instructions"
    )


def check_int8(args: argparse.Namespace) -> None:
    """Raises InputError if --int8 lacks images, or an option of it is given without it."""
    from ..sources.images import find_images

    if args.int8 and not args.images:
        raise InputError("--int8 needs images for calibration: give --images FOLDER")
    if args.int8 and len(find_images(args.images)) < 2:
        raise InputError(f"--int8 needs at least two images, one of them for comparison; {args.images} has one")
    if not args.int8:
        check_untouched(args, "--int8", calibrate=CALIBRATE, compare=COMPARE, reduce_range=False)


def add_integers(args: argparse.Namespace, source: Source, written: Exported, outcome: Outcome) -> Outcome:
    """Writes the int8 file of a file with floats, and adds to the outcome what it is worth.

    Args:
        args: the command line.
        source: the dense model's source, which reads the images as the network needs them.
        written: the file with floats.
        outcome: the report of the file with floats.
    """
    from sirfp.exporting.eight_bits import quantize
    from sirfp.exporting.eight_bits_accuracy import compare_files
    from sirfp.reporting import tables

    calibration, others, labels = _split(args, source)
    size = None if "size" in written.free else source.size
    batches = (images for images, _ in _read(source, calibration, size, labels))
    target = Path(args.output)
    done, layers = quantize(
        written.path, target, with_progress(batches, "calibrating", len(calibration)), reduce_range=args.reduce_range
    )
    rest = with_progress(_read(source, others, size, labels), "comparing int8 with floats", len(others))
    accuracy = compare_files(written.path, target, rest)
    image = next(_read(source, others[:1], source.size, {}))[0]
    times = _times(written.path, target, image)
    before, after = os.path.getsize(written.path), os.path.getsize(target)
    floats, integers = times["floats"], times["int8"]
    height, width = source.size
    lines = [
        f"{args.output}, {tables.size(after)} ({tables.size(before)} with floats): 8-bit integers in {done} of "
        f"{layers} layers with weights, calibrated on {len(calibration)} images",
        f"int8 compared with floats on {accuracy.images} other images: {describe(accuracy)}",
        f"Latency in onnxruntime: {_milliseconds(floats)} with floats, {_milliseconds(integers)} with int8, "
        f"{integers.median / floats.median:.2f} of it; median and quartiles of {REPEATS} calls in turns, 1 image of "
        f"{height} x {width} pixels, {_threads()} thread{'s' * (_threads() > 1)}",
    ]
    data = {
        "file_bytes": after,
        "int8": {
            "float_bytes": before,
            "layers": layers,
            "quantised_layers": done,
            "calibration_images": len(calibration),
            "images": accuracy.images,
            "same_class": accuracy.same_class,
            "labelled": accuracy.labelled,
            "right": list(accuracy.right) if accuracy.labelled else None,
            "pixels": accuracy.pixels,
            "same_pixels": accuracy.same_pixels,
            "detections": list(accuracy.detections) if accuracy.detections else None,
            "paired": accuracy.paired,
            "latency_seconds": {name: latency.median for name, latency in times.items()},
            "threads": _threads(),
        },
    }
    return Outcome({**outcome.data, **data}, [*outcome.output, *lines], outcome.failure)


def describe(found: Accuracy) -> str:
    """The accuracy of an int8 file in words."""
    if found.detections is not None:
        floats, integers = found.detections
        if not floats:
            return "floats detect nothing with a score of 0.5 or more, so that nothing was compared"
        return (
            f"of {floats} objects that floats detect with a score of at least 0.5, int8 finds {found.paired} "
            f"({100 * found.paired / floats:.1f}%); int8 itself detects {integers}"
        )
    if found.pixels is not None:
        share = 100 * found.same_pixels / found.pixels
        return f"{found.same_pixels} of {found.pixels} pixels get the same class ({share:.2f}%)"
    same = found.same_class or 0
    text = f"{same} get the same class ({100 * same / max(found.images, 1):.1f}%)"
    if found.labelled:
        ours, theirs = (f"{100 * right / found.labelled:.1f}%" for right in found.right)
        text += f"; top-1 {ours} with floats, {theirs} with int8"
    return text


def _split(args: argparse.Namespace, source: Source) -> tuple[list[Path], list[Path], dict[Path, int]]:
    """Draws images for calibration and others for comparison; returns both, and the class of each image if known."""
    from ..sources.images import find_images

    paths = find_images(args.images)
    labels = classes_of(Path(args.images), paths, getattr(source.model, "num_classes", None))
    random.Random(args.seed).shuffle(paths)
    count = min(args.calibrate, len(paths) // 2)
    return paths[:count], paths[count : count + args.compare], labels


def _read(
    source: Source, paths: Sequence[Path], size: tuple[int, int] | None, labels: dict[Path, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Reads images one by one, as the network needs them: (1, C, H, W), and (1,), the class, or None.

    Args:
        source: the dense model's source.
        paths: image files.
        size: (height, width) to which images are resized; None for their own.
        labels: {path: class} of images whose class is known.
    """
    import torch
    from torch.nn import functional as F

    for path in paths:
        image = source.raw(source.read([path]))[0][None]
        if size and image.shape[2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        yield image, torch.tensor([labels[path]]) if path in labels else None


def _times(path: Path, target: Path, image: torch.Tensor) -> dict[str, Latency]:
    """Times both files in turns."""
    from sirfp.exporting import Session
    from sirfp.network.latency import in_turns

    def timed(session: Session) -> float:
        start = time.perf_counter()
        session(image)
        return time.perf_counter() - start

    sessions = {"floats": Session(path, _threads()), "int8": Session(target, _threads())}
    return in_turns({name: partial(timed, session) for name, session in sessions.items()}, repeats=REPEATS)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _milliseconds(latency: Latency) -> str:
    return f"{latency.median * 1e3:.1f} ms ({latency.low * 1e3:.1f} to {latency.high * 1e3:.1f})"
