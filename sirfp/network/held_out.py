"""Counts, divides and joins the images of batches, and holds some of them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from .forward import tensors


def count_images(batch: Any) -> int:
    """Returns the number of images of a batch: the length of a list of dictionaries, else of its first tensor."""
    if isinstance(batch, list) and batch and isinstance(batch[0], Mapping):
        return len(batch)
    first = next((tensor for _, tensor in tensors(batch) if tensor.dim()), None)
    return 1 if first is None else len(first)


def chosen(batch: Any, images: Sequence[int]) -> Any:
    """Returns some images of a batch, with all that belongs to them.

    Args:
        batch: a list of dictionaries, or tensors in nested tuples, lists and dictionaries. Tensors with as many rows as
            the batch has images are divided; all else is passed on as it is.
        images: the positions of the images.
    """
    if isinstance(batch, list) and batch and isinstance(batch[0], Mapping):
        return [batch[i] for i in images]
    return _chosen(batch, count_images(batch), list(images))


def _chosen(value: Any, count: int, images: list[int]) -> Any:
    if isinstance(value, torch.Tensor):
        return value[images] if value.dim() and len(value) == count else value
    if isinstance(value, Mapping):
        return {key: _chosen(each, count, images) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_chosen(each, count, images) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)  # a named tuple has fields
    return value


def hold_out(batches: Sequence[Any], most: int, share: float = 0.25) -> tuple[list[Any], list[Any]]:
    """Divides batches into images for fitting and images that are held out, to check what was fitted.

    Held out are images at even distances over all batches. Loaders often give images in the order of their classes: if
    whole batches were held out, both parts would lack classes of the other.

    Args:
        batches: the batches.
        most: the maximum number of images that are held out.
        share: the share of the images that is held out, if that is not more than `most`.

    Returns:
        The batches for fitting, and those that are held out: none of either is empty unless there is a single image,
        which is for fitting.
    """
    sizes = [count_images(batch) for batch in batches]
    total = sum(sizes)
    wanted = min(most, max(1, round(share * total)))
    if total < 2:
        return list(batches), []
    out = {int((i + 0.5) * total / wanted) for i in range(wanted)}
    fit: list[Any] = []
    held: list[Any] = []
    start = 0
    for batch, size in zip(batches, sizes, strict=True):
        inside = [i for i in range(size) if start + i in out]
        rest = [i for i in range(size) if start + i not in out]
        for part, positions in ((fit, rest), (held, inside)):
            if positions:
                part.append(batch if len(positions) == size else chosen(batch, positions))
        start += size
    return fit, held


def regrouped(batches: Sequence[Any], most: int = 32, pixels: int | None = None) -> list[Any]:
    """Divides and joins batches, so that a network is called few times and its feature maps are not too large.

    Args:
        batches: tensors (N, ...), or lists of dictionaries of Detectron2; others are left as they are. Images of
            different shapes are not joined.
        most: the maximum number of images of a new batch.
        pixels: the maximum number of pixels of a new batch of more than one image; None for any.
    """
    result: list[Any] = []
    for batch in batches:
        shape = _shape(batch)
        if shape is None:
            result.append(batch)
            continue
        size = most if pixels is None else max(1, min(most, pixels // max(1, prod(shape[1:]))))
        last = result.pop() if result and _shape(result[-1]) == shape and _kind(result[-1]) == _kind(batch) else None
        if last is not None:
            batch = torch.cat([last, batch]) if isinstance(batch, torch.Tensor) else [*last, *batch]
        result += [batch[start : start + size] for start in range(0, count_images(batch), size)]
    return result


def thinned(batches: Sequence[Any], most: int) -> list[Any]:
    """Returns batches at even distances that have at most so many images together, at least one batch."""
    images = sum(map(count_images, batches))
    wanted = max(1, len(batches) * most // images) if images else 0
    if wanted >= len(batches):
        return list(batches)
    return [batches[(2 * i + 1) * len(batches) // (2 * wanted)] for i in range(wanted)]


def _shape(batch: Any) -> torch.Size | None:
    """Returns the shape of each image, if all have the same and the batch can be divided and joined."""
    if isinstance(batch, torch.Tensor) and batch.dim() and len(batch):
        return batch.shape[1:]
    if isinstance(batch, list) and batch and all(isinstance(one, Mapping) for one in batch):
        images = [one.get("image") for one in batch]
        if not all(isinstance(image, torch.Tensor) for image in images):
            return None
        shapes = {image.shape for image in images}
        return shapes.pop() if len(shapes) == 1 else None
    return None


def _kind(batch: Any) -> Any:
    return (batch.dtype, batch.device) if isinstance(batch, torch.Tensor) else list
