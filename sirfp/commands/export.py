"""`sirfp export`: a model, dense or pruned, as an ONNX file, checked in onnxruntime."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from .arguments import (
    MODEL_USAGE,
    OPTS_USAGE,
    add_images,
    add_model,
    add_tolerance,
    at_least,
    build_source,
    check_tolerance,
    check_writable,
    need_model,
    split_words,
)
from .outcome import Outcome

USAGE = f"sirfp export [FILE] {MODEL_USAGE} -o MODEL.onnx [options] {OPTS_USAGE}"
EXAMPLE = """examples:
  sirfp export small.safetensors --timm resnet18 -o small.onnx
  sirfp export small.safetensors --config-file deeplab.yaml -o small.onnx --images photos/
  sirfp export --zoo COCO-Detection/retinanet_R_50_FPN_1x --weights model.pkl -o dense.onnx    without FILE: dense

The file takes `images`, (N, C, H, W), float32 from 0 to 255, and gives logits; of a segmentor also the classes of
pixels, of a detector boxes, scores, classes, count and masks if it has them: docs/export.md."""


def add(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_model(parser)
    add_images(parser, "check the file on these images; by default on random ones", count=1, batch=2)
    parser.add_argument("-o", "--output", metavar="MODEL.onnx", required=True, help="the file to write")
    parser.add_argument(
        "--fixed",
        choices=("size", "all"),
        help="fix the images' size at --size, or also the batch at one image; by default both are left open where the "
        "model allows",
    )
    parser.add_argument(
        "--opset", type=at_least(1), metavar="N", help="ONNX's version of operators; by default as PyTorch has it"
    )
    parser.add_argument("--score-threshold", type=float, metavar="T", help="of detections; by default the config's")
    add_tolerance(parser, 1e-3, "from PyTorch")


def run(args: argparse.Namespace) -> Outcome:
    """Builds the model, writes the file and compares it with PyTorch."""
    from sirfp.checkpoint.pruned import read, restore
    from sirfp.exporting import agreement, build_graph, check_opset, check_packages, export

    file, opts = split_words(args.words, file=True)
    if not args.output.endswith(".onnx"):
        raise InputError(f"-o {args.output}: give the file the ending .onnx")
    check_tolerance(args.tolerance)
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise InputError(f"--score-threshold must lie in [0, 1], got {args.score_threshold}")
    check_opset(args.opset)
    check_writable(args.output)
    check_packages()
    plan_and_state = read(file) if file else None  # before a model is built for it
    source = need_model(build_source(args, opts))
    model = source.model
    if plan_and_state:
        model = source.fresh()
        restore(model, *plan_and_state, file)
    if args.score_threshold is not None:
        scorers = [module for module in model.modules() if hasattr(module, "test_score_thresh")]
        if not scorers:
            raise InputError(f"--score-threshold is for detectors, not for {source.name}")
        for module in scorers:
            module.test_score_thresh = args.score_threshold
    graph = build_graph(source, model)
    source.check()
    images = _images(source, args)
    free = {None: ("batch", "size"), "size": ("batch",), "all": ()}[args.fixed]
    metadata = {"model": source.name, "colours": source.colours, "values": "0 to 255", "made by": "sirfp export"}
    written = export(graph, Path(args.output), source.size, free=free, metadata=metadata, opset=args.opset)
    images = images if "size" in written.free else [resized(image, source.size) for image in images]
    found = agreement(graph, args.output, images or _noise(source, graph, written, args.seed))
    return _outcome(args, source, file, written, found)


def _images(source, args: argparse.Namespace) -> list:
    """The user's images, each a batch of one."""
    if not args.images:
        return []
    batches = source.batches(args.images, args.batches, args.batch, args.seed)
    return [image[None] for batch in batches for image in source.raw(batch)]


def resized(images: Any, size: tuple[int, int]) -> Any:
    """Images (N, C, H, W) at another (height, width)."""
    from torch.nn import functional as F

    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _noise(source, graph, written, seed: int) -> list:
    """Random images, one tensor a batch, also of another size where that is free."""
    import torch

    from sirfp.exporting import other_size

    torch.manual_seed(seed)
    sizes = [(2 if "batch" in written.free else 1, *source.size)]
    if "size" in written.free:
        sizes.append((1, *other_size(source.size)))
    return [torch.rand(n, len(graph.mean), h, w) * 255 for n, h, w in sizes]


def _outcome(args: argparse.Namespace, source, file: str, written, found) -> Outcome:
    from sirfp.reporting import tables

    bytes_ = os.path.getsize(args.output)
    opened = " and ".join(written.free) or "nothing"
    height, width = source.size
    at = "any size" if "size" in written.free else f"{height} x {width} pixels"
    batch = "any batch" if "batch" in written.free else "one image"
    shown: list[Any] = [
        f"{args.output}, {tables.size(bytes_)}: {file or 'the dense model'} of {source.name}, {batch}, {at}"
    ]
    shown += list(written.notes)
    shown.append(
        f"onnxruntime against PyTorch on {found.images} images{'' if args.images else ' of noise'}: {said(found)}"
    )
    data = {
        "file": args.output,
        "file_bytes": bytes_,
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
    failure = "" if same else f"{args.output} (left {opened} open) differs from the model in PyTorch: {said(found)}"
    if failure and found.detections is not None and not (file or source.weights):
        failure += "; its weights are random, and rounding decides between detections of equal chances: give --weights"
    return Outcome(data, shown, failure)


def said(found) -> str:
    """An agreement in words."""
    parts = [
        f"largest difference of {name} {gap:.2g} (of {found.scale[name]:.3g})" for name, gap in found.largest.items()
    ]
    if found.pixels is not None:
        parts.append(f"{found.other_pixels} of {found.pixels} pixels of another class")
    if found.detections is not None:
        parts.append(f"{found.detections} detections, {found.unmatched} that only one of them has")
        if not found.detections:
            parts.append("so that nothing was compared: give --images, or a lower --score-threshold")
    return "; ".join(parts)
