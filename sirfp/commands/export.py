"""`sirfp export`: writes a dense or pruned model as an ONNX file and checks it in onnxruntime."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..reporting.progress import stage
from .arguments import (
    MODEL_USAGE,
    OPTS_USAGE,
    add_images,
    add_model,
    add_tolerance,
    at_least,
    build_source,
    check_tolerance,
    check_untouched,
    check_writable,
    file_and_pairs,
    need_model,
    note_if_random,
)
from .eight_bits import add_int8, add_integers, check_int8
from .outcome import Outcome
from .recorded import restore_as_named

if TYPE_CHECKING:  # `sirfp --help` does not import PyTorch
    import torch
    from torch import nn

    from ..exporting import Agreement, Exported, Graph
    from ..sources.source import Source

USAGE = f"sirfp export [FILE] [{MODEL_USAGE[1:-1]}] -o MODEL.onnx [options] {OPTS_USAGE}"
EXAMPLE = """examples:
  sirfp export small.safetensors -o small.onnx
  sirfp export small.safetensors --config-file deeplab.yaml -o small.onnx --images photos/
  sirfp export --zoo COCO-Detection/retinanet_R_50_FPN_1x --weights model.pkl -o dense.onnx    without FILE: dense
  sirfp export small.safetensors -o small_int8.onnx --int8 --images photos/

The file's input is `images`, (N, C, H, W), float32 from 0 to 255. Its outputs are logits; for a segmentor also the
class of each pixel; for a detector boxes, scores, classes, count and, if it predicts them, masks: docs/export.md."""


LOOK = {"batches": 1, "batch": 2}
"""Defaults of the options of --images."""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    add_model(parser)
    add_images(parser, "check the file on these images; by default on random ones", LOOK["batches"], LOOK["batch"])
    parser.add_argument("-o", "--output", metavar="MODEL.onnx", required=True, help="the file to write")
    parser.add_argument(
        "--fixed",
        choices=("size", "all"),
        help="size: fix the images' size to --size; all: also fix the batch to one image; by default both are left "
        "open if the model allows",
    )
    parser.add_argument(
        "--opset",
        type=at_least(1),
        metavar="N",
        help="version of ONNX's operators, from 13 on; by default PyTorch's",
    )
    parser.add_argument(
        "--score-threshold", type=float, metavar="T", help="least score of a detection; by default the config's"
    )
    add_tolerance(parser, 1e-3, "from PyTorch")
    add_int8(parser)


def run(args: argparse.Namespace) -> Outcome:
    """Builds the model, writes the file and compares its outputs with PyTorch's."""
    from sirfp.checkpoint.pruned import read
    from sirfp.exporting import agreement, build_graph, check_opset, check_packages, export

    file, opts = file_and_pairs(args, file=True)
    if not args.output.endswith(".onnx"):
        raise InputError(f"-o {args.output}: give the file the ending .onnx")
    check_tolerance(args.tolerance)
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise InputError(f"--score-threshold must lie in [0, 1], got {args.score_threshold}")
    check_opset(args.opset)
    check_int8(args)
    if not args.images:
        check_untouched(args, "--images", **LOOK)
    check_writable(args.output)
    check_packages()
    plan_and_state = read(file) if file else None  # first, so that a damaged file is reported before a model is built
    source = need_model(build_source(args, opts, file))
    model = source.model
    if plan_and_state:
        model = source.fresh()
        restore_as_named(model, *plan_and_state, file, args)
    if args.score_threshold is not None:
        _set_threshold(model, args.score_threshold, source.name)
    graph = build_graph(source, model)
    source.check()
    if not file:
        note_if_random(source)
    images = _images(source, args)
    free = {None: ("batch", "size"), "size": ("batch",), "all": ()}[args.fixed]
    metadata = {"model": source.name, "colours": source.colours, "values": "0 to 255", "made by": "sirfp export"}
    with _float_file(args) as path:
        stage("exporting by PyTorch's exporter")
        written = export(graph, path, source.size, free=free, metadata=metadata, opset=args.opset)
        images = images if "size" in written.free else [resized(image, source.size) for image in images]
        stage("comparing onnxruntime with PyTorch")
        found = agreement(graph, path, images or _noise(source, graph, written, args.seed))
        outcome = _outcome(args, source, file, written, found)
        return add_integers(args, source, written, outcome) if args.int8 and not outcome.failure else outcome


@contextmanager
def _float_file(args: argparse.Namespace) -> Iterator[Path]:
    """The file with floats: the output, or with --int8 a temporary file."""
    if not args.int8:
        yield Path(args.output)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "floats.onnx"


def _set_threshold(model: nn.Module, threshold: float, name: str) -> None:
    """Sets the score threshold of a detector; raises InputError if the model is no detector."""
    scorers: list[Any] = [module for module in model.modules() if hasattr(module, "test_score_thresh")]
    if not scorers:
        raise InputError(f"--score-threshold is for detectors, not for {name}")
    for module in scorers:
        module.test_score_thresh = threshold


def _images(source: Source, args: argparse.Namespace) -> list[torch.Tensor]:
    """The user's images, each as a batch of one."""
    if not args.images:
        return []
    batches = source.batches(args.images, args.batches, args.batch, args.seed)
    return [image[None] for batch in batches for image in source.raw(batch)]


def resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes images (N, C, H, W) to (height, width)."""
    from torch.nn import functional as F

    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _noise(source: Source, graph: Graph, written: Exported, seed: int) -> list[torch.Tensor]:
    """Batches of random images: one of the model's size, and one of another size if the file's size is open."""
    import torch

    from sirfp.exporting import other_size

    torch.manual_seed(seed)
    sizes = [(2 if "batch" in written.free else 1, *source.size)]
    if "size" in written.free:
        sizes.append((1, *other_size(source.size)))
    return [torch.rand(n, len(graph.mean), h, w) * 255 for n, h, w in sizes]


def _outcome(args: argparse.Namespace, source: Source, file: str, written: Exported, found: Agreement) -> Outcome:
    """Reports the file and the differences of its outputs from the outputs of the model in PyTorch."""
    from sirfp.reporting import tables

    file_bytes = os.path.getsize(written.path)
    height, width = source.size
    size = "any size" if "size" in written.free else f"{height} x {width} pixels"
    batch = "any batch" if "batch" in written.free else "one image"
    what = "the file with floats" if args.int8 else args.output
    output: list[Any] = [
        f"{what}, {tables.size(file_bytes)}: {file or 'the dense model'} of {source.name}, {batch}, {size}",
        *written.notes,
        f"onnxruntime compared with PyTorch on {found.images} {'' if args.images else 'random '}images: "
        f"{describe(found)}",
    ]
    data = {
        "file": args.output,
        "file_bytes": file_bytes,
        "model": source.name,
        "free": list(written.free),
        "size": None if "size" in written.free else [height, width],
        "notes": list(written.notes),
        "largest_difference": found.largest,
        "relative_difference": found.relative,
        "images": found.images,
        "detections": found.detections,
        "unmatched_detections": found.unmatched,
        "pixels": found.pixels,
        "other_pixels": found.other_pixels,
        "tolerance": args.tolerance,
    }
    same = found.relative <= args.tolerance and found.unmatched <= args.tolerance * max(found.detections or 0, 1)
    return Outcome(data, output, "" if same else _failure(args, found, written, trained=bool(file or source.weights)))


def _failure(args: argparse.Namespace, found: Agreement, written: Exported, *, trained: bool) -> str:
    """Describes how a file differs from its model; explains the case of a detector without trained weights."""
    opened = " and ".join(written.free) or "nothing"
    text = f"{args.output} (with {opened} left open) differs from the model in PyTorch: {describe(found)}"
    if found.detections is not None and not trained:
        text += "; its weights are random, so that rounding decides between detections of equal scores: give --weights"
    return text


def describe(found: Agreement) -> str:
    """Formats an agreement as text."""
    parts = [
        f"largest difference of {name} {gap:.2g} (largest value {found.scale[name]:.3g})"
        for name, gap in found.largest.items()
    ]
    if found.pixels is not None:
        parts.append(f"{found.other_pixels} of {found.pixels} pixels differ in class")
    if found.detections is not None:
        parts.append(f"{found.detections} detections, {found.unmatched} found by only one of the two")
        if not found.detections:
            parts.append("so nothing was compared: give --images with objects, or a lower --score-threshold")
    return "; ".join(parts)
