"""Whether an ONNX file in onnxruntime gives what the model gives in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou

from ..errors import InputError, one_line
from .graphs import Graph

SAME_BOX = 0.95  # intersection over union from which on two boxes of a class are one


@dataclass
class Agreement:
    """How far the outputs of two runtimes differ.

    Attributes:
        largest: {output: largest absolute difference}; for detections, of those that both found.
        scale: {output: largest absolute value}.
        images: how many were compared.
        detections: how many PyTorch gave; None for other models.
        unmatched: detections that only one of them gave.
        pixels: how many pixels' classes were compared; None for other models.
        other_pixels: of those, how many differ.
    """

    largest: dict[str, float] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    images: int = 0
    detections: int | None = None
    unmatched: int = 0
    pixels: int | None = None
    other_pixels: int = 0

    @property
    def relative(self) -> float:
        """The largest difference of an output over its largest value."""
        shares = (value / max(self.scale[name], 1e-12) for name, value in self.largest.items())
        return max(shares, default=0.0)

    def add(self, output: str, a: torch.Tensor, b: torch.Tensor) -> None:
        """Takes a pair of outputs of the same shape into account."""
        if not a.numel():
            return
        gap = float((a.double() - b.double()).abs().max())
        before = self.largest.get(output, 0.0)
        self.largest[output] = gap if not gap <= before else before  # also where it is no number
        self.scale[output] = max(self.scale.get(output, 0.0), float(a.abs().max()))


class Session:
    """An ONNX file in onnxruntime on the processor.

    Args:
        path: the file.
        threads: of the processor; onnxruntime's choice by default.
        profile: how the file begins that `session.end_profiling()` writes the times of operators to; none by default.
    """

    def __init__(self, path: str | Path, threads: int | None = None, profile: str | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs on images (N, C, H, W)."""
        return tuple(torch.from_numpy(array) for array in self.session.run(None, {"images": images.numpy()}))


def agreement(graph: Graph, path: str | Path, batches: Iterable[torch.Tensor]) -> Agreement:
    """Compares a file with the model that it was made from, called as its users call it.

    Args:
        graph: the model.
        path: the ONNX file.
        batches: of images, each (N, C, H, W).

    Raises:
        InputError: onnxruntime cannot read the file, or not run it on one of them.
    """
    found = Agreement()
    try:
        session = Session(path)
    except Exception as error:  # onnxruntime's own kinds, which have no common base
        raise InputError(
            f"{path} was written, but onnxruntime cannot read it ({one_line(error, 200)}); "
            "an older --opset may help: it lacks some operators of the newest"
        ) from None
    for images in batches:
        with torch.no_grad():
            ours = dict(zip(graph.outputs, graph.original(images), strict=True))
        try:
            theirs = dict(zip(session.names, session(images), strict=True))
        except Exception as error:
            raise InputError(
                f"{path} was written, but onnxruntime cannot run it on images of {tuple(images.shape)} "
                f"({one_line(error, 200)}); try --fixed size or --fixed all"
            ) from None
        found.images += len(images)
        if "boxes" in ours:
            for i in range(len(images)):
                compare_detections(
                    found, *({name: tensor[i] for name, tensor in side.items()} for side in (ours, theirs))
                )
            continue
        for name, tensor in ours.items():
            if tensor.is_floating_point():
                found.add(name, tensor, theirs[name])
            else:
                found.pixels = (found.pixels or 0) + tensor.numel()
                found.other_pixels += int((tensor != theirs[name]).sum())
    return found


def compare_detections(found: Agreement, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Pairs the detections of one image, each with the nearest of its class that is free."""
    n, m = int(ours["count"]), int(theirs["count"])
    found.detections = (found.detections or 0) + n
    overlaps = box_iou(ours["boxes"][:n], theirs["boxes"][:m])
    overlaps[ours["classes"][:n, None] != theirs["classes"][None, :m]] = 0
    paired = 0
    for i in range(n if m else 0):
        overlap, j = overlaps[i].max(0)
        if overlap >= SAME_BOX:
            paired += 1
            overlaps[:, j] = 0
            for name in {"boxes", "scores", "masks"} & ours.keys():
                found.add(name, ours[name][i], theirs[name][j])
    found.unmatched += n + m - 2 * paired
