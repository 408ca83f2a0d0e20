"""Compares two detectors on the same boxes, so that rounding errors cannot change discrete choices.

A difference of 1e-7 can change which proposals are selected and which boxes pass thresholds and NMS. After one changed
choice the two lists of detections cannot be compared. Therefore the second model reads the boxes of the first model, as
region proposals and in every pooler. The outputs of all layers whose width the plan leaves unchanged are compared:
every score, box delta, mask and feature map that a head returns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from ..network.forward import call, inference, tensors
from ..network.same_boxes import same_boxes
from ..network.walk import walk
from ..structure.plan import PruningPlan
from .choices import Choices
from .kept import as_if_cut
from .proof import Difference, compare, furthest
from .rounding import Compared


def is_detector(output: Any) -> bool:
    """Returns True if an output is Detectron2's list of detections or proposals."""
    items = output if isinstance(output, list) else []
    return any(isinstance(item, dict) and ("instances" in item or "proposals" in item) for item in items)


def comparison_for(model: nn.Module, inputs: Any) -> Compared:
    """Returns the comparison for a model: `compare_continuous` for Detectron2's detectors, `compare` for all others."""
    with inference(model):
        return compare_continuous if is_detector(call(model, inputs)) else compare


def compare_continuous(
    a: nn.Module, b: nn.Module, inputs: Any, plan: PruningPlan, *, masked: bool = False
) -> Difference:
    """Runs two detectors on the same inputs and the same boxes, and compares their layers' outputs.

    Other discrete choices are repeated too, such as the points at which PointRend refines a mask.

    Args:
        a: the masked dense model. Its statistics over channels are taken over the kept ones.
        b: the pruned model.
        inputs: `list[dict]`.
        plan: the plan; layers whose output channels are not in the plan are compared.
        masked: True if `b` is a masked model of the same plan too.
    """
    names = whole_layers(a, {place for c in plan.cuts for place in c.tensors})
    boxes: list[Any] = []
    choices = Choices()
    with choices, as_if_cut(a, plan):
        first, _ = continuous(a, inputs, names, boxes, record=True)
    with Choices(choices), as_if_cut(b, plan if masked else None):
        second, _ = continuous(b, inputs, names, boxes, record=False)
    for path, tensor in first.items():
        other = second.get(path)
        if other is None or tensor.shape != other.shape:
            return Difference(float("inf"), path, f"{path} is missing or has another shape in the second model")
    return furthest(first, second)


def whole_layers(model: nn.Module, cut: Collection[tuple[str, int]]) -> list[str]:
    """Returns the names of the layers with a weight whose output dimension is not among the cut (tensor, dimension)."""
    return [
        name
        for name, module in walk(model)
        if isinstance(getattr(module, "weight", None), torch.Tensor)
        and (f"{name}.weight", 1 if getattr(module, "transposed", False) else 0) not in cut
    ]


def continuous(
    model: nn.Module,
    inputs: Any,
    names: Iterable[str],
    boxes: list[Any],
    *,
    record: bool,
    mode: Callable[[nn.Module], AbstractContextManager[None]] = inference,
) -> tuple[dict[str, torch.Tensor], Any]:
    """Runs a detector and collects the outputs of layers.

    Args:
        model: the detector.
        inputs: `list[dict]`.
        names: the layers.
        boxes: filled with the detector's boxes if `record`; otherwise they replace the detector's own boxes.
        record: True to record the boxes, False to replay them.
        mode: sets the mode in which the detector runs.

    Returns:
        {layer: its output}, and the detector's output. From the second call of a layer on, its name ends in
        " (call 2)", " (call 3)", ...
    """
    with mode(model), same_boxes(model, boxes, record=record), _recording(model, names) as found:
        output = call(model, inputs)
    return found, output


@contextmanager
def _recording(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collects the outputs of modules by name and number of the call."""
    found: dict[str, torch.Tensor] = {}
    calls: dict[str, int] = {}

    def hook_for(name: str):
        def hook(_, inputs, output):
            calls[name] = calls.get(name, 0) + 1
            for path, tensor in tensors(output, name):
                if tensor.is_floating_point():
                    found[f"{path} (call {calls[name]})" if calls[name] > 1 else path] = tensor

        return hook

    modules = dict(walk(model))
    handles = [modules[name].register_forward_hook(hook_for(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
