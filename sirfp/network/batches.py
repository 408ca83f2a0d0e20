"""Calibration batches as loaders give them: with labels, as lists, as dictionaries, without end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..errors import InputError, one_line
from .forward import call, is_detectron_input
from .untouched import copied_inputs

logger = logging.getLogger(__name__)

Run = Callable[[nn.Module, Any], Any]
"""`run(model, batch)` calls a model with a batch."""
ENDLESS = 256
"""Number of batches that are used of a calibration without a length, which may be endless: a generator, a cycle."""


def finite(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields batches: as many as `len` says, or at most `ENDLESS` if they have no length."""
    known: Any = batches
    try:
        most = len(known)
    except TypeError:
        most = None
    source = iter(batches)
    yield from islice(source, ENDLESS if most is None else most)
    if most is None and next(source, source) is not source:
        logger.warning(
            f"calibration has no length; its first {ENDLESS} batches are used. Give a list, or "
            "itertools.islice(batches, N), to use another number"
        )


def check_batches(batches: Any, example: Any) -> None:
    """Raises InputError if calibration batches are a single batch, like the example inputs, or a path."""
    if isinstance(batches, torch.Tensor) and isinstance(example, torch.Tensor) and batches.dim() == example.dim():
        raise InputError(
            f"calibration is {described(batches)}: give a list of batches, such as [images] or images.split(8)"
        )
    if isinstance(batches, (str, os.PathLike)):
        raise InputError(f"calibration is a path, {str(batches)!r}: give a loader, or a list of batches")


def runner(example_inputs: Any, forward: Run | None = None, loss: Run | None = None) -> Run:
    """Returns how a calibration batch is run: by `forward`, else by `loss`, else as the example inputs are.

    Each call gets a copy of the batch, because some models write into their inputs, and a batch is run several times.

    Args:
        example_inputs: inputs of the model.
        forward: the user's `forward(model, batch)`.
        loss: the user's `loss(model, batch)`, which calls the model.
    """
    own = forward or loss
    if own is None:
        return lambda model, batch: call(model, inputs_of(batch, example_inputs))
    return with_copies(own)


def with_copies(run: Run) -> Run:
    """Returns a function that gives a user's function a copy of the batch."""
    return lambda model, batch: run(model, copied_inputs(batch))


def inputs_of(batch: Any, example: Any) -> Any:
    """Takes the inputs of a model out of a batch, by their likeness to example inputs.

    Args:
        batch: inputs, or a list, tuple or mapping with inputs and labels.
        example: inputs that the model was called with.

    Raises:
        InputError: the batch has nothing like the example inputs.
    """
    found: Any = None
    if isinstance(example, torch.Tensor):
        found = next((part for part in _parts(batch) if _alike(part, example)), None)
    elif is_detectron_input(example):
        found = batch if is_detectron_input(batch) else None
    elif isinstance(example, Mapping):
        given = next((part for part in _parts(batch, Mapping) if set(example) <= set(part)), None)
        found = None if given is None else {name: given[name] for name in example}
    elif isinstance(example, (tuple, list)) and all(isinstance(part, torch.Tensor) for part in example):
        wanted = len(example) if isinstance(example, tuple) else None  # a list may have any number of images
        for part in (batch, *_parts(batch, (tuple, list))):
            parts = [part] if isinstance(part, torch.Tensor) else list(part) if isinstance(part, (tuple, list)) else []
            inputs = parts[:wanted]
            matches = zip(inputs, example if wanted else [example[0]] * len(inputs), strict=False)
            if inputs and len(inputs) == (wanted or len(parts)) and all(_alike(a, b) for a, b in matches):
                found = type(example)(inputs)
                break
    else:
        return batch
    if found is None:
        raise InputError(
            f"a calibration batch is {described(batch)}, in which nothing is like the example inputs, "
            f"{described(example)}; say how a batch is run by forward=lambda model, batch: ..."
        )
    return found


def attempted(run: Run, model: nn.Module, batch: Any, what: str) -> Any:
    """Runs a batch; errors of the model's own code become an InputError, which keeps them as its cause.

    Args:
        run: calls the model with the batch.
        model: the model.
        batch: the batch.
        what: description of the batch, for the message.

    Raises:
        InputError: the run fails.
    """
    try:
        return run(model, batch)
    except InputError:
        raise
    except Exception as error:  # any class: the user's code raises it
        raise InputError(
            f"the model cannot be run on {what}, {described(batch)}: {type(error).__name__}: {one_line(error, 200)}"
        ) from error


def described(value: Any) -> str:
    """Describes a batch in a few words, e.g. "a list of a tensor (4, 3, 16, 16) and a tensor (4,)"."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(repr, list(value)[:6]))}"
    if isinstance(value, (tuple, list)):
        parts = [described(part) for part in value[:3]] + (["more"] if len(value) > 3 else [])
        return f"a {type(value).__name__} of {' and '.join(parts) or 'nothing'}"
    return f"an object of class {type(value).__name__}"


def _parts(batch: Any, kinds: type | tuple[type, ...] = torch.Tensor) -> Iterator[Any]:
    """Yields the parts of a batch that are of some kinds: the batch itself, then its elements or values."""
    if isinstance(batch, kinds):
        yield batch
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    yield from (part for part in inner if isinstance(part, kinds))


def _alike(part: Any, example: torch.Tensor) -> bool:
    """True for a tensor of as many dimensions as an example, and also of floats or also of integers."""
    return (
        isinstance(part, torch.Tensor)
        and part.dim() == example.dim()
        and part.is_floating_point() == example.is_floating_point()
    )
