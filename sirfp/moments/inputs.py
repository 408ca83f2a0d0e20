"""The moments of one layer's input, in two halves by images, so that one half can check what the other one fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..network.forward import call
from .centred import CentredSums

UNFOLDED = 1152
"""Maximum number of input channels times taps of a kernel whose moments are taken over channels and taps: a 3 x 3
kernel on 128 channels. They take 2.5 MiB for each half of the images."""


class InputMoments:
    """Mean and covariance of the channels that a layer reads, over images and positions.

    The images come in two halves. A fit on one of them can be judged on the other, whose images it has not seen.

    Args:
        shape: the shape of the layer's weight, (O, I, ...).
        device: where the sums are kept.

    Attributes:
        taps: the number of taps of the layer's kernel; 1 for a linear layer.
        halves: the sums of each half of the images, over channels.
        unfolded: the sums of each half of the images, over channels and taps in the order of the weight, with zeros
            where a tap lies in the padding; None for one tap and above `UNFOLDED`.
        images: the number of images in which the layer was called.
        inside: for each tap the number of output positions at which it lies inside the map, (taps,) in float64.
        positions: the number of output positions, in float64.
    """

    def __init__(self, shape: torch.Size, device: torch.device | str | None = None):
        width, self.taps = shape[1], shape[2:].numel()
        self.halves = CentredSums(width, device), CentredSums(width, device)
        self.unfolded = None
        if self.taps > 1 and width * self.taps <= UNFOLDED:
            self.unfolded = CentredSums(width * self.taps, device), CentredSums(width * self.taps, device)
        self.images = 0
        self.inside = torch.zeros(self.taps, dtype=torch.float64, device=device)
        self.positions = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def rows(self) -> int:
        """The number of rows: positions of all images, at most `ROWS` of a call."""
        return int(self.halves[0].rows + self.halves[1].rows)

    @property
    def width(self) -> int:
        """The number of input channels I."""
        return len(self.halves[0].mean)

    @property
    def shares(self) -> torch.Tensor:
        """The share of output positions at which each tap lies inside the map, (taps,) in float64."""
        return torch.where(self.positions > 0, self.inside / self.positions.clamp_min(1), 1)

    @cached_property
    def whole(self) -> CentredSums:
        """The sums over all images, over channels; joined at the first use."""
        return self.halves[0].joined(self.halves[1])

    @cached_property
    def widest(self) -> CentredSums:
        """The sums over all images, over channels and taps if there are any, else over channels."""
        return self.unfolded[0].joined(self.unfolded[1]) if self.unfolded else self.whole

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Returns the mean (I,), the covariance (I, I), both in float64, and the number of rows, over all images."""
        sums = self.whole
        return sums.mean, sums.covariance(), int(sums.rows)

    def copy_channels(self, other: InputMoments) -> None:
        """Replaces the sums over channels by those of a layer that reads the same."""
        for own, given in zip(self.halves, other.halves, strict=True):
            own.copy_(given)

    def same_channels(self, other: InputMoments) -> bool:
        """True if the sums over channels are equal, bit for bit, in both halves: those of layers that read the same."""
        return all(one.equal(two) for one, two in zip(self.halves, other.halves, strict=True))

    def reduce(self, add_up: Callable[[torch.Tensor], object]) -> None:
        """Replaces the sums by those of all processes; `add_up` sums a tensor over them, in place."""
        for half in (*self.halves, *(self.unfolded or ())):
            half.reduce(add_up)
        counts = torch.cat([self.inside, self.positions[None], self.positions.new_tensor([self.images])])
        add_up(counts)
        self.inside, self.positions, self.images = counts[: self.taps], counts[-2], int(counts[-1])


class Moments(dict[str, InputMoments]):
    """{name of a layer's weight: moments of its input}, and images to check corrections on; see `take_moments`.

    Attributes:
        unseen: batches of the second half of the images, with `CHECKED` images or more where there are as many. A
            single image is the only one: no layer is fitted to it.
        checked: the number of images in `unseen`.
        batches: all batches, and with each whether its images are in the first half, (batch, True or False).
        run: calls a model with a batch.
        training: the mode of each module when the moments were taken.
    """

    def __init__(self, run: Callable[[nn.Module, Any], Any] = call) -> None:
        super().__init__()
        self.unseen: list[Any] = []
        self.checked = 0
        self.batches: list[tuple[Any, bool]] = []
        self.run = run
        self.training: dict[str, bool] = {}

    def part(self, half: bool) -> list[Any]:
        """Returns all batches, or those of the first half of the images."""
        return [batch for batch, first in self.batches if first or not half]

    @contextmanager
    def as_taken(self, model: nn.Module) -> Iterator[None]:
        """Sets every module's mode to that in which the moments were taken, and restores it afterwards."""
        before = [(m, m.training) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        names = {id(module): name for name, module in model.named_modules()}
        for module, mode in before:
            module.training = self.training.get(names[id(module)], mode)
        try:
            yield
        finally:
            for module, mode in before:
                module.training = mode
