"""Compares the outputs of an ONNX file in onnxruntime with those of the model in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import box_iou

from ..errors import InputError, one_line
from .graphs import Graph

SAME_BOX = 0.95
"""Least intersection over union of a pair of detections. It is close to 1: boxes may differ by rounding only."""


@dataclass
class Agreement:
    """How much the outputs of two runtimes differ.

    Attributes:
        largest: {output: largest absolute difference}; for detections, over pairs found by both runtimes.
        scale: {output: largest absolute value}.
        images: number of images compared.
        detections: number of detections in PyTorch; None if the model is no detector.
        unmatched: number of detections found by only one runtime.
        pixels: number of pixels whose class was compared; None if the model is no segmentor.
        other_pixels: number of compared pixels whose classes differ.
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
        """The largest of (difference / largest absolute value) over all outputs."""
        shares = (value / max(self.scale[name], 1e-12) for name, value in self.largest.items())
        return max(shares, default=0.0)

    def add(self, output: str, a: torch.Tensor, b: torch.Tensor) -> None:
        """Updates `largest` and `scale` of an output from a pair of tensors of the same shape."""
        if not a.numel():
            return
        gap = float((a.double() - b.double()).abs().max())
        before = self.largest.get(output, 0.0)
        self.largest[output] = gap if not gap <= before else before  # `not <=` also keeps NaN
        self.scale[output] = max(self.scale.get(output, 0.0), float(a.abs().max()))


class Session:
    """An ONNX file, run by onnxruntime on the CPU.

    Its threads sleep between two runs. By default they would wait for the next run actively, for some 50 ms, and take
    a core from the network that is timed next.

    Args:
        path: the file.
        threads: number of CPU threads; None leaves the choice to onnxruntime.
        profile: prefix of the file to which `session.end_profiling()` writes operator times; None for no profile.
    """

    def __init__(self, path: str | Path, threads: int | None = None, profile: str | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.add_session_config_entry("session.force_spinning_stop", "1")  # see the class
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
    """Compares the outputs of an ONNX file with those of the original model (`Graph.original`).

    Args:
        graph: the model that the file was exported from.
        path: the ONNX file.
        batches: batches of images, each (N, C, H, W).

    Raises:
        InputError: onnxruntime cannot read the file or cannot run it on a batch.
    """
    found = Agreement()
    try:
        session = Session(path)
    except Exception as error:  # onnxruntime's error classes share no base class
        raise InputError(
            f"{path} was written, but onnxruntime cannot read it ({one_line(error, 200)}); "
            "an older --opset may help: onnxruntime lacks some operators of the newest"
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
    """Compares the detections of one image.

    Pairs each detection of PyTorch with the detection of the other runtime that has the same class, is not paired yet
    and overlaps most.

    Args:
        found: the result so far, updated in place.
        ours, theirs: {"boxes": (D, 4), "scores": (D), "classes": (D), "count": (), "masks": (D, h, w) if any}.
    """
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
