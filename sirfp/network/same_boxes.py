"""Lets a detector read the boxes of another one, so that the outputs of both can be compared.

A difference of 1e-7 can change which proposals are selected and which boxes pass thresholds and NMS. After one changed
choice the outputs of the heads belong to other boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

POOLER = "ROIPooler"
PROPOSALS = "ROIHeads"


@contextmanager
def same_boxes(model: nn.Module, boxes: list[Any], *, record: bool) -> Iterator[None]:
    """Records the boxes that a detector's heads and poolers read, or replaces them by recorded ones, call by call.

    Args:
        model: the detector.
        boxes: filled with the detector's boxes if `record`; otherwise they replace the detector's own boxes.
        record: True to record the boxes, False to replace them.
    """
    queue = iter(boxes)

    def hook_for(position: int):
        def hook(_, inputs):
            if len(inputs) <= position:
                return None
            if record:
                boxes.append(inputs[position])
                return None
            given = next(queue, inputs[position])
            return (*inputs[:position], given, *inputs[position + 1 :])

        return hook

    handles = []
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kinds & {POOLER, PROPOSALS}:
            position = 1 if POOLER in kinds else 2
            handles.append(module.register_forward_pre_hook(hook_for(position)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
