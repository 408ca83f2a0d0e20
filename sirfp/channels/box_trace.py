"""Traces a two-stage detector without computing its heads for all boxes.

A trace needs the sizes of all tensors, but hardly any values. The heads of a two-stage detector treat all boxes alike,
and a thousand boxes take most of the time and memory of a forward pass. Their convolutions, matrix products and pooled
regions are therefore computed for a few boxes and repeated for the others. Labels, sizes and FLOPs are those of all.
"""

from __future__ import annotations

from typing import Any

import torch

from ..network.branches import within
from ..network.proposals import BOXES
from ..tracing import ChannelTrace

ROWS: dict[str, tuple[int, ...]] = {
    "aten::convolution": (0,),
    "aten::addmm": (1,),
    "aten::mm": (0,),
    "aten::bmm": (0, 1),
    "torchvision::roi_align": (1,),
}
"""{operation that computes each box alone: positions of the arguments that have a row for each box}."""


class BoxTrace(ChannelTrace):
    """A trace that computes operations in the heads of a detector for `BOXES` boxes only.

    Attributes:
        heads_of_boxes: the names of the modules that read boxes (`sirfp.network.proposals.box_heads`).
    """

    heads_of_boxes: tuple[str, ...] = ()

    def compute(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Runs an operation; in the heads on the first `BOXES` rows only, whose results are repeated."""
        places = ROWS.get(func._schema.name) if self.heads_of_boxes else None
        if places is None or not self._holds_boxes([args[place] for place in places]):
            return func(*args, **kwargs)
        few = [value[:BOXES] if place in places else value for place, value in enumerate(args)]
        rows = torch.arange(len(args[places[0]]), device=args[places[0]].device)
        return func(*few, **kwargs)[rows % BOXES]

    def _holds_boxes(self, tensors: list[torch.Tensor]) -> bool:
        """True for tensors of many rows in a head. Rows with labels are channels, as those of a weight are."""
        if len(tensors[0]) <= BOXES or any(self.dim(tensor, 0) is not None for tensor in tensors):
            return False
        return within(f"{self.owner()}.", self.heads_of_boxes)
