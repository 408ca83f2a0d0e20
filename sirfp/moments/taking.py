"""Takes the second moments of layers' inputs, in forward passes of calibration batches or training batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..network.forward import call, tensors
from ..structure.groups import ChannelGroups
from .inputs import InputMoments, Moments

ROWS = 4096
"""Maximum number of positions of one call that are used. It bounds the time of a call's product. Neighbouring positions
of a map are similar."""
WIDEST = 4096
"""Maximum number of input channels of a layer whose moments are taken. The moments are a matrix with this many rows: 32
MiB for the lower half in float32, 128 MiB for the whole matrix in float64 when it is solved."""
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def take_moments(
    model: nn.Module, found: ChannelGroups, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] = call
) -> Moments:
    """Runs batches through a model and sums up the second moments of the inputs of layers that read prunable channels.

    Args:
        model: the model; it runs in its present mode.
        found: its groups.
        batches: the inputs of each call.
        run: calls the model with a batch.

    Returns:
        {weight's name: moments} for ungrouped convolutions and linear layers of at most `WIDEST` input channels, over
        the images of all processes of a run. Every second batch counts for the second half of the images; of a single
        batch, every second image. Layers that were not called, or with NaN or infinite values only, are left out.
    """
    state = _Progress()
    moments: Moments = {}
    with ExitStack() as handles:
        for name in dict.fromkeys(emission.weight for emission in found.emissions):
            module: Any = model.get_submodule(name.rpartition(".")[0])
            if name.endswith("weight") and _is_plain(module) and module.weight.shape[1] <= WIDEST:
                moments[name] = InputMoments(module.weight.shape[1], module.weight.device)
                hook = _adder(moments[name], 1 - module.weight.dim(), state)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                handles.callback(handle.remove)
        batches = iter(batches)
        first = list(islice(batches, 2))
        state.alone = len(first) == 1
        for batch in chain(first, batches):
            state.images = count_images(batch)
            run(model, batch)
            state.batch += 1
    if dist.is_available() and dist.is_initialized():
        for taken in moments.values():
            for half in taken.halves:
                half.reduce(dist.all_reduce)
            images = torch.tensor(taken.images, device=taken.halves[0].mean.device)
            dist.all_reduce(images)
            taken.images = int(images)
    return {name: taken for name, taken in moments.items() if taken.rows}


class _Progress:
    """Which batch runs.

    Attributes:
        batch: the number of the batch, counted from the number of the process, so that processes with one batch each
            fill both halves.
        images: its number of images.
        alone: True if there is one batch only.
    """

    def __init__(self) -> None:
        self.batch = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self.images = 0
        self.alone = False


def count_images(batch: Any) -> int:
    """Returns the number of images of a batch: the length of a list of dictionaries, else of its first tensor."""
    if isinstance(batch, list) and batch and isinstance(batch[0], Mapping):
        return len(batch)
    first = next((tensor for _, tensor in tensors(batch) if tensor.dim()), None)
    return 1 if first is None else len(first)


def _is_plain(module: nn.Module) -> bool:
    """True for an ungrouped convolution or linear layer applied directly to its input.

    Subclasses outside PyTorch, timm and Detectron2 count only if they do not override `forward`.
    """
    base = next((kind for kind in _PLAIN if isinstance(module, kind)), None)
    known = type(module).__module__.partition(".")[0] in ("torch", "timm", "detectron2")
    return base is not None and (known or type(module).forward is base.forward) and getattr(module, "groups", 1) == 1


def _adder(taken: InputMoments, channels: int, state: _Progress) -> Callable:
    """Returns a pre-hook that adds the second moments of a layer's input to `taken`.

    Args:
        taken: the moments, changed in place.
        channels: the channel dimension of the input, counted from the end.
        state: which batch runs.
    """
    calls, last = 0, -1

    def add(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        nonlocal calls, last
        x = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)
        if x is None:
            return
        with torch.autocast(x.device.type, enabled=False):
            rows = x.detach().movedim(channels, -1).reshape(-1, taken.width)
            step = -(-len(rows) // ROWS) or 1
            chosen = rows[calls % step :: step].float()
            if state.alone:
                images = (
                    torch.arange(calls % step, len(rows), step, device=x.device) * state.images // max(1, len(rows))
                )
                for parity, half in enumerate(taken.halves):
                    half.add(chosen[images % 2 == parity])
            else:
                taken.halves[state.batch % 2].add(chosen)
        calls += 1
        if last != state.batch:
            taken.images += state.images
            last = state.batch

    return add
