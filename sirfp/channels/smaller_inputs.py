"""Makes a model's inputs smaller for the runs of the trial, which need no large images.

The trial runs a model three times and more. At 1024 x 2048 pixels, or with sixteen images, that takes minutes, and
smaller inputs show the same. They take the place of the given ones only if the model runs the same operations on them
and a trace finds the same groups. After the trial a cut copy runs once on the given inputs too: the cut must change
the same sizes and numbers as on the smaller ones (`same_changes`), since code such as `x * min(width, tokens)` depends
on the width in large images only. Costs are those of the given inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from ..network.forward import is_detectron_input
from ..structure.groups import ChannelGroups

FLOPS = 4 * 10**10
"""Multiply-adds of a call from which on smaller inputs are tried. In calls of fewer, they save about the time that the
trace of a smaller call and the proof on the given inputs take."""
SMALLER = 1 / 3
"""Largest share of the elements of the given inputs that smaller ones have; others save too little."""
LEAST = 128
"""Smallest height and width of smaller images, in pixels. At stride 32 their feature maps have 4 x 4 positions."""
MULTIPLE = 32
"""Sides that are multiples of this stay multiples: many networks want it."""
IMAGES = 2
"""Number of images of a smaller batch: with one, a dimension of images could be any dimension of one element."""

Operations = list[tuple]
"""The operations of a pass as `sirfp.tracing.codes.described` gives them."""


def smaller_inputs(inputs: Any) -> Iterator[Any]:
    """Yields inputs of at most a third of the elements, the smallest first: fewer and smaller images, then only fewer.

    Images are tensors (N, C, H, W), alone or in tuples, lists and dictionaries, or those of Detectron2's `list[dict]`,
    (C, H, W). Of them, and of tensors of the same height and width, rows and columns at even distances are taken: a
    corner may be black, and zeros hide a wrong cut. The images that are left are the first and the middle one.

    Args:
        inputs: the inputs; they are not changed.
    """
    most = SMALLER * _elements(inputs)
    made = _smaller_items(inputs) if is_detectron_input(inputs) else _smaller_tensors(inputs)
    yield from (smaller for smaller in made if _elements(smaller) <= most)


def _tensors(inputs: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


def _elements(inputs: Any) -> int:
    return sum(tensor.numel() for tensor in _tensors(inputs))


def _smaller_tensors(inputs: Any) -> Iterator[Any]:
    """Yields smaller inputs of a model that takes tensors."""
    image = next((t for t in _tensors(inputs) if t.dim() >= 4 and t.is_floating_point()), None)
    if image is None:
        return
    old, new = tuple(image.shape[-2:]), _smaller(*image.shape[-2:])
    count = len(image)
    fewer = min(count, IMAGES)

    def part(tensor: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        if count > fewer and tensor.dim() and len(tensor) == count:
            tensor = tensor[_spread(count, fewer)]
        return _sampled(tensor, *size) if tensor.dim() > 2 and tuple(tensor.shape[-2:]) == old else tensor

    for size in dict.fromkeys((new, old)):
        yield tree_map_only(torch.Tensor, partial(part, size=size), inputs)


def _smaller_items(inputs: list[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yields smaller inputs of a model of Detectron2; images are cut only if nothing else belongs to their pixels."""
    fewer = [inputs[i] for i in _spread(len(inputs), min(len(inputs), IMAGES))]
    known = {"image", "height", "width", "file_name", "image_id"}
    if all(set(item) <= known and isinstance(item.get("image"), torch.Tensor) for item in fewer):
        sizes = [_smaller(*item["image"].shape[-2:]) for item in fewer]
        yield [_smaller_item(item, *size) for item, size in zip(fewer, sizes, strict=True)]
    yield fewer


def _smaller_item(item: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Returns an item with a smaller image; the size of its output is that of the image."""
    done = {**item, "image": _sampled(item["image"], height, width)}
    return done | {key: size for key, size in (("height", height), ("width", width)) if key in item}


def _sampled(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Returns rows and columns of images (..., H, W), as many as asked for."""
    rows, columns = _spread(image.shape[-2], height), _spread(image.shape[-1], width)
    return image[..., rows, :][..., columns]


def _spread(count: int, wanted: int) -> list[int]:
    """Returns numbers at even distances among the first `count`, beginning with 0."""
    return [i * count // wanted for i in range(wanted)]


def _smaller(height: int, width: int) -> tuple[int, int]:
    """Returns the size of smaller images: both sides divided by one power of two, none below `LEAST`."""
    factor = 1
    while min(height, width) // (2 * factor) >= LEAST:
        factor *= 2
    return _divided(height, factor), _divided(width, factor)


def _divided(side: int, factor: int) -> int:
    part = side // factor
    return part if side % MULTIPLE else -(-part // MULTIPLE) * MULTIPLE


def ratios(given: Operations, smaller: Operations) -> set[float] | None:
    """Compares a pass with the given inputs and one with smaller inputs.

    Returns:
        The ratios of the sizes and other numbers that differ, or None if the passes run other operations, or if a
        dimension or a number is 0 or 1 in one of them only.
    """
    found: set[float] = set()
    if len(given) != len(smaller):
        return None
    for first, second in zip(given, smaller, strict=True):
        if first != second:
            values = [_numbers(first), _numbers(second)]
            if len(values[0]) != len(values[1]):
                return None
            for a, b in zip(*values, strict=True):
                if a != b:
                    if _kind(a) != _kind(b):
                        return None
                    found.add(round(a / b, 9))
    return found


def _numbers(operation: tuple) -> list[Any]:
    """Returns an operation's name, numbers, and sizes of dimensions; with the number of dimensions of each tensor."""
    numbers: list[Any] = []
    for value in operation:
        if isinstance(value, torch.Size):
            numbers += [f"{len(value)} dimensions", *value]
        else:
            numbers.append(value)
    return numbers


def _kind(value: Any) -> Any:
    """Returns what two values that may differ have in common: other numbers than 0 and 1 their type and sign."""
    number = type(value) in (int, float) and math.isfinite(value) and value not in (-1, 0, 1)
    return (type(value), value > 0) if number else value


def same_changes(dense: tuple[Operations, Operations], cut: tuple[Operations, Operations]) -> bool:
    """True if a cut changes the same in a pass with the given inputs as in one with smaller inputs.

    Otherwise a number in the model's code depends on a width at one of them only, as `min(width, tokens)` does.

    Args:
        dense: the passes of the dense model, with the given inputs and with smaller ones.
        cut: those of the same cut copy.
    """
    before, after = ratios(*dense), ratios(*cut)
    if before is None or after is None or not after <= before:
        return False
    if [operation[0] for operation in dense[0]] != [operation[0] for operation in cut[0]]:
        return True  # an operation, such as attention, runs in the trace as several
    given, smaller = (list(map(_changed, a, b)) for a, b in zip(dense, cut, strict=True))
    return given == smaller


def _changed(dense: tuple, cut: tuple) -> list[bool] | None:
    """Tells which numbers of an operation differ; None if it has other arguments."""
    a, b = _numbers(dense), _numbers(cut)
    return [x != y for x, y in zip(a, b, strict=True)] if len(a) == len(b) else None


def same_groups(first: ChannelGroups, second: ChannelGroups) -> bool:
    """True if two traces found the same groups, frozen channels, widths and calls that take sizes."""
    return _described(first) == _described(second)


def _described(found: ChannelGroups) -> tuple:
    return (
        [(g.name, [(s.tensor, s.dim, s.index.tolist()) for s in g.slices]) for g in found],
        found.frozen,
        {name: {key: atoms.tolist() for key, atoms in widths.items()} for name, widths in found.widths.items()},
        {name: atoms.tolist() for name, atoms in found.positions.items()},
        (found.sizes, found.branches, found.heads),
        [(e.weight, e.atoms.tolist()) for e in found.emissions],
        [(c.place, *map(_size, c.sizes, c.atoms, c.fixed), c.rounds, c.training) for c in found.calls],
    )


def _size(size: int, atoms: np.ndarray | None, fixed: bool) -> Any:
    """Describes a size in a call: by its channels; a constant by its value."""
    return size if fixed else None if atoms is None else atoms.tolist()
