"""The moments of one layer's input, in two halves by images, so that one half can check what the other one fitted."""

from __future__ import annotations

import torch

from .centred import CentredSums


class InputMoments:
    """Mean and covariance of the channels that a layer reads, over images and positions.

    The images come in two halves. A fit on one of them can be judged on the other, whose images it has not seen.

    Args:
        width: the number of input channels I.
        device: where the sums are kept.

    Attributes:
        halves: the sums of each half of the images.
        images: the number of images in which the layer was called.
    """

    def __init__(self, width: int, device: torch.device | str | None = None):
        self.halves = CentredSums(width, device), CentredSums(width, device)
        self.images = 0

    @property
    def rows(self) -> int:
        """The number of rows: positions of all images, at most `ROWS` of a call."""
        return int(self.halves[0].rows + self.halves[1].rows)

    @property
    def width(self) -> int:
        """The number of input channels I."""
        return len(self.halves[0].mean)

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Returns the mean (I,), the covariance (I, I), both in float64, and the number of rows, over all images."""
        sums = self.halves[0].joined(self.halves[1])
        return sums.mean, sums.covariance(), int(sums.rows)


Moments = dict[str, InputMoments]
"""{name of a layer's weight: moments of its input}; see `take_moments`."""
