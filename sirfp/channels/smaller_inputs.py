"""Makes a model's inputs smaller for the runs of the trial, which need no large images.

The trial runs a model four times and more. At 1024 x 2048 pixels, or with sixteen images, that takes minutes, and
smaller inputs show the same. They take the place of the given ones only if the model runs the same operations on them
and a trace finds the same groups. Costs are those of the given inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from ..network.forward import is_detectron_input
from ..structure.groups import ChannelGroups

FLOPS = 2 * 10**10
"""Multiply-adds of a call from which on smaller inputs are tried. In calls of half as many, they save about the time
that the trace of a smaller call takes."""
LEAST = 128
"""Smallest height and width of smaller images, in pixels. At stride 32 their feature maps have 4 x 4 positions."""
MULTIPLE = 32
"""Sides that are multiples of this stay multiples: many networks want it."""
IMAGES = 2
"""Number of images of a smaller batch: with one, a dimension of images could be any dimension of one element."""

Shapes = list[tuple[str, list[torch.Size]]]
"""The name of each operation of a pass, and the shapes of the tensors that it reads."""


def smaller_inputs(inputs: Any) -> Iterator[Any]:
    """Yields smaller inputs, the smallest first: fewer and smaller images, then only fewer.

    Images are tensors (N, C, H, W), alone or in tuples, lists and dictionaries, or those of Detectron2's `list[dict]`,
    (C, H, W). Their upper left part is taken, of tensors of the same height and width with them.

    Args:
        inputs: the inputs; they are not changed.
    """
    if is_detectron_input(inputs):
        yield from _smaller_items(inputs)
        return
    image = next((t for t in _tensors(inputs) if t.dim() >= 4 and t.is_floating_point()), None)
    if image is None:
        return
    old, new = tuple(image.shape[-2:]), _smaller(*image.shape[-2:])
    count = len(image)
    fewer = min(count, IMAGES)

    def part(tensor: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
        if count > fewer and tensor.dim() and len(tensor) == count:
            tensor = tensor[:fewer]
        if tensor.dim() > 2 and tuple(tensor.shape[-2:]) == old:
            tensor = tensor[..., : size[0], : size[1]]
        return tensor.clone()

    for size in dict.fromkeys((new, old)):
        made = _mapped(inputs, partial(part, size=size))
        if [t.shape for t in _tensors(made)] != [t.shape for t in _tensors(inputs)]:  # containers may be of other kinds
            yield made


def _smaller_items(inputs: list[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yields smaller inputs of a model of Detectron2; images are cut only if nothing else belongs to their pixels."""
    fewer = inputs[:IMAGES]
    known = {"image", "height", "width", "file_name", "image_id"}
    if all(set(item) <= known and isinstance(item.get("image"), torch.Tensor) for item in fewer):
        sizes = [_smaller(*item["image"].shape[-2:]) for item in fewer]
        if sizes != [tuple(item["image"].shape[-2:]) for item in fewer]:
            yield [_cropped(item, *size) for item, size in zip(fewer, sizes, strict=True)]
    if len(fewer) < len(inputs):
        yield fewer


def _cropped(item: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """Returns an item with the upper left part of its image; the size of its output is that of the image."""
    cropped = {**item, "image": item["image"][..., :height, :width].clone()}
    return cropped | {key: size for key, size in (("height", height), ("width", width)) if key in item}


def _smaller(height: int, width: int) -> tuple[int, int]:
    """Returns the size of smaller images: both sides divided by one power of two, none below `LEAST`."""
    factor = 1
    while min(height, width) // (2 * factor) >= LEAST:
        factor *= 2
    return _divided(height, factor), _divided(width, factor)


def _divided(side: int, factor: int) -> int:
    part = side // factor
    return part if side % MULTIPLE else -(-part // MULTIPLE) * MULTIPLE


def _tensors(inputs: Any) -> Iterator[torch.Tensor]:
    if isinstance(inputs, torch.Tensor):
        yield inputs
    elif isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from _tensors(value)
    elif isinstance(inputs, (list, tuple)):
        for value in inputs:
            yield from _tensors(value)


def _mapped(inputs: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Returns a copy of containers with changed tensors."""
    if isinstance(inputs, torch.Tensor):
        return change(inputs)
    if type(inputs) is dict:
        return {key: _mapped(value, change) for key, value in inputs.items()}
    if type(inputs) in (list, tuple):
        return type(inputs)(_mapped(value, change) for value in inputs)
    return inputs


def same_operations(first: Shapes, second: Shapes) -> bool:
    """True if two passes run the same operations, on tensors of which the same dimensions have one element, or none."""
    return len(first) == len(second) and all(
        a[0] == b[0] and list(map(_kinds, a[1])) == list(map(_kinds, b[1])) for a, b in zip(first, second, strict=True)
    )


def _kinds(shape: torch.Size) -> tuple[int, ...]:
    return tuple(min(size, 2) for size in shape)


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
        [(c.place, [a is None or a.tolist() for a in c.atoms], c.fixed, c.rounds, c.training) for c in found.calls],
    )
