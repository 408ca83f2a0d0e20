"""Counts, divides and joins the images of batches, and holds some of them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .forward import tensors


def count_images(batch: Any) -> int:
    """Returns the number of images of a batch: the length of a list of dictionaries, else of its first tensor."""
    if isinstance(batch, list) and batch and isinstance(batch[0], Mapping):
        return len(batch)
    first = next((tensor for _, tensor in tensors(batch) if tensor.dim()), None)
    return 1 if first is None else len(first)


def part(batch: Any, start: int, stop: int) -> Any:
    """Returns the images from `start` to `stop` of a batch, with all that belongs to them.

    Args:
        batch: a list of dictionaries, or tensors in nested tuples, lists and dictionaries. Tensors with as many rows as
            the batch has images are divided; all else is passed on as it is.
        start: the first image.
        stop: the image after the last one.
    """
    if isinstance(batch, list) and batch and isinstance(batch[0], Mapping):
        return batch[start:stop]
    return _part(batch, count_images(batch), start, stop)


def _part(value: Any, images: int, start: int, stop: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[start:stop] if value.dim() and len(value) == images else value
    if isinstance(value, Mapping):
        return {key: _part(each, images, start, stop) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_part(each, images, start, stop) for each in value)
    return value


def hold_out(batches: Sequence[Any], most: int, share: float = 0.25) -> tuple[list[Any], list[Any]]:
    """Divides batches into those for fitting and those that are held out, to check what was fitted.

    Whole batches are held out where there are enough of them, spread evenly; otherwise the last images of each batch.

    Args:
        batches: the batches.
        most: the maximum number of images that are held out.
        share: the share of the images that is held out, if that is not more than `most`.

    Returns:
        The batches for fitting, and those that are held out: none of either is empty unless there is a single image,
        which is for fitting.
    """
    sizes = [count_images(batch) for batch in batches]
    wanted = min(most, max(1, round(share * sum(sizes))))
    if sum(sizes) < 2:
        return list(batches), []
    if len(batches) > 1 and max(sizes) <= wanted:
        count = max(1, int(wanted / (sum(sizes) / len(sizes))))
        chosen = {round((i + 0.5) * len(batches) / count - 0.5) for i in range(count)}
        return (
            [batch for i, batch in enumerate(batches) if i not in chosen],
            [batch for i, batch in enumerate(batches) if i in chosen],
        )
    fit, held, left = [], [], wanted
    for batch, size in sorted(zip(batches, sizes, strict=True), key=lambda pair: -pair[1]):
        count = min(left, max(1, round(wanted * size / sum(sizes)))) if left else 0
        count = min(count, size - 1) if size > 1 else 0
        left -= count
        fit.append(part(batch, 0, size - count))
        if count:
            held.append(part(batch, size - count, size))
    return (fit, held) if held else (fit[:-1], fit[-1:])


def joined(batches: Sequence[Any], most: int = 16) -> list[Any]:
    """Joins batches of equal shapes to larger ones, so that a network is called fewer times.

    Args:
        batches: tensors (N, ...), or lists of dictionaries of Detectron2; others are left as they are.
        most: the maximum number of images of a joined batch.
    """
    result: list[Any] = []
    for batch in batches:
        last = result[-1] if result else None
        if last is None or _shape(last) != _shape(batch) or count_images(last) + count_images(batch) > most:
            result.append(batch)
        elif isinstance(batch, torch.Tensor):
            result[-1] = torch.cat([last, batch])
        else:
            result[-1] = [*last, *batch]
    return result


def _shape(batch: Any) -> Any:
    """Returns the shape of each image if a batch can be joined with another of the same shape, else a new object."""
    if isinstance(batch, torch.Tensor) and batch.dim():
        return batch.shape[1:]
    if isinstance(batch, list) and batch and all(isinstance(one, Mapping) and "image" in one for one in batch):
        shapes = {one["image"].shape for one in batch}
        return shapes.pop() if len(shapes) == 1 else object()
    return object()
