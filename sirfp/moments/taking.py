"""Takes the second moments of layers' inputs, in forward passes of calibration batches or training batches."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..errors import one_line
from ..network.forward import call, first_tensor
from ..network.held_out import count_images
from ..structure.groups import ChannelGroups
from ..tracing.taps import shares
from .centred import CentredSums
from .inputs import InputMoments, Moments
from .unfolding import axes_between, padded, spread, unfolded

ROWS = 4096
"""Maximum number of positions of one call that are used. It bounds the time of a call's product. Neighbouring positions
of a map are similar."""
WIDEST = 4096
"""Maximum number of input channels of a layer whose moments are taken. The moments are a matrix with this many rows: 32
MiB for the lower half in float32, 128 MiB for the whole matrix in float64 when it is solved."""
CHECKED = 16
"""Number of images, at least, on which the whole cut network is compared with the dense one."""
_FREE = 512
"""Up to this number of channels times taps, `ROWS` positions of a call are unfolded; above it fewer, so that the
product takes no longer."""
_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)

logger = logging.getLogger(__name__)


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
    moments = Moments(run)
    moments.training = {name: getattr(module, "training", False) for name, module in model.named_modules()}
    with ExitStack() as handles:
        for name in dict.fromkeys(emission.weight for emission in found.emissions):
            module: Any = model.get_submodule(name.rpartition(".")[0])
            if name.endswith("weight") and _is_plain(module) and module.weight.shape[1] <= WIDEST:
                moments[name] = InputMoments(module.weight.shape, module.weight.device)
                handle = module.register_forward_hook(_adder(moments[name], state), with_kwargs=True)
                handles.callback(handle.remove)
        batches = iter(batches)
        first = list(islice(batches, 2))
        state.alone = len(first) == 1
        for batch in chain(first, batches):
            state.images = count_images(batch)
            try:
                run(model, batch)
            except FloatingPointError as error:  # the model stops at NaN, as Detectron2's region proposals do
                logger.warning("A batch is left out of the moments: %s", one_line(error, 160))
                state.batch += 1
                continue
            parts = _halves(batch) if state.alone and state.images > 1 else ()
            second = parts[-1] if parts else batch
            if (state.alone or state.batch % 2) and moments.checked < CHECKED:
                moments.checked += count_images(second)
                moments.unseen.append(second)
            moments.batches += [(part, part is not second) for part in parts] or [(batch, not state.batch % 2)]
            state.batch += 1
    if dist.is_available() and dist.is_initialized():
        for taken in moments.values():
            taken.reduce(dist.all_reduce)
    for name in [name for name, taken in moments.items() if not taken.rows]:
        del moments[name]
    return moments


def _halves(batch: Any) -> tuple[Any, ...]:
    """Returns every second image of a batch, from the first and from the second one on; () for a batch of an unknown
    kind."""
    sliceable = isinstance(batch, torch.Tensor) or (
        isinstance(batch, list) and all(isinstance(x, Mapping) for x in batch)
    )
    return (batch[::2], batch[1::2]) if sliceable else ()


class _Progress:
    """Which batch runs.

    Attributes:
        batch: the number of the batch, counted from the number of the process, so that processes with one batch each
            fill both halves.
        images: its number of images.
        alone: True if there is one batch only.
        layers: all layers. Those that read the same tensors have the same moments, which are taken once.
    """

    def __init__(self) -> None:
        self.batch = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self.images = 0
        self.alone = False
        self.layers: list[_Layer] = []


@dataclass
class _Layer:
    """What one layer has added to its moments.

    Attributes:
        taken: its moments.
        calls: the number of its calls.
        last: a reference to the input of the last call; the input's version, the batch, and the number of the weight's
            dimensions.
        source: the moments of another layer that got the same inputs in all calls; None before the first call.
    """

    taken: InputMoments
    calls: int = 0
    last: tuple[weakref.ref[torch.Tensor], int, int, int] | None = None
    source: InputMoments | None = None

    def add(self, x: torch.Tensor, module: Any, state: _Progress) -> InputMoments | None:
        """Notes a call; returns the moments of a layer that were the same before it and hold the same input already."""
        zeros = getattr(module, "padding_mode", "zeros") == "zeros"
        before, self.last = self.source, None
        self.calls += 1
        if not zeros or x.is_inference():  # such tensors have no version
            self.source = self.taken
            return None
        self.last = weakref.ref(x), x._version, state.batch, module.weight.dim()
        same = (
            each.taken
            for each in state.layers
            if each is not self and each.calls == self.calls and before in (None, each.taken) and each._holds(self.last)
        )
        found = next(same, None)
        self.source = self.taken if found is None else found
        return found

    def _holds(self, call: tuple[weakref.ref[torch.Tensor], int, int, int]) -> bool:
        return self.last is not None and self.last[0]() is call[0]() and self.last[1:] == call[1:]


def _is_plain(module: nn.Module) -> bool:
    """True for an ungrouped convolution or linear layer applied directly to its input.

    Subclasses outside PyTorch, timm and Detectron2 count only if they do not override `forward`.
    """
    base = next((kind for kind in _PLAIN if isinstance(module, kind)), None)
    known = type(module).__module__.partition(".")[0] in ("torch", "timm", "detectron2")
    return base is not None and (known or type(module).forward is base.forward) and getattr(module, "groups", 1) == 1


def _adder(taken: InputMoments, state: _Progress) -> Callable:
    """Returns a hook that adds the second moments of a layer's input to `taken`.

    Args:
        taken: the moments, changed in place.
        state: which batch runs.
    """
    calls, last, layer = 0, -1, _Layer(taken)
    state.layers.append(layer)

    def add(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        nonlocal calls, last
        x = first_tensor(args, kwargs)
        if x is None or not x.numel():
            return
        same = layer.add(x, module, state)
        with torch.autocast(x.device.type, enabled=False):
            x = padded(module, x.detach())
            flat = x.movedim(1 - module.weight.dim(), -1).reshape(-1, taken.width)
            step = -(-len(flat) // ROWS) or 1
            start = calls % step
            images = torch.arange(start, len(flat), step, device=x.device) * state.images // len(flat)
            if same is not None:
                taken.copy_channels(same)
            else:
                _add_to_halves(taken.halves, flat[start::step].float(), images, state)
            axes = axes_between(module, x, output)
            if axes is not None and taken.taps > 1:
                total = output.numel() // module.weight.shape[0]
                taken.inside += shares(axes).to(taken.inside) * min(total, ROWS)
                taken.positions += min(total, ROWS)
                if taken.unfolded is not None:
                    count = min(ROWS, ROWS * _FREE**2 // (taken.width * taken.taps) ** 2)
                    positions = spread(total, count, calls, x.device)
                    rows = unfolded(flat, axes, positions).float()
                    _add_to_halves(taken.unfolded, rows, positions * state.images // total, state)
        calls += 1
        if last != state.batch:
            taken.images += state.images
            last = state.batch

    return add


def _add_to_halves(
    halves: tuple[CentredSums, CentredSums], rows: torch.Tensor, images: torch.Tensor, state: _Progress
) -> None:
    """Adds rows (n, I) to the half of their batch or, if there is one batch only, of their images, (n,)."""
    if not state.alone:
        return halves[state.batch % 2].add(rows)
    for parity, half in enumerate(halves):
        half.add(rows[images % 2 == parity])
