"""Loss curves as plain data: what a model loses if one group alone keeps fewer of its atoms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Curve:
    """The loss of a model at several widths of one group, with all other groups dense.

    Losses are divergences from the dense model's output, so that the curves of different groups can be added.

    Attributes:
        group: name of the group.
        size: number of atoms of the group.
        widths: the measured widths in atoms, ascending; the last is `size`.
        losses: the mean divergence at each width, as measured: noise can make it rise with the width, become negative
            or not finite. The last is 0.

    Raises:
        InputError: widths and losses are not as described.
    """

    group: str
    size: int
    widths: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        object.__setattr__(self, "losses", tuple(float(loss) for loss in self.losses))
        steps = zip((0, *self.widths), self.widths, strict=False)
        if not self.widths or self.widths[-1] != self.size or not all(a < b for a, b in steps):
            raise InputError(
                f"the loss curve of {self.group!r} must have ascending widths from 1 to {self.size}, got {self.widths}"
            )
        if len(self.losses) != len(self.widths) or self.losses[-1] != 0:
            raise InputError(
                f"the loss curve of {self.group!r} must have a loss for each of its {len(self.widths)} widths and end "
                f"with 0, got {self.losses}"
            )

    @staticmethod
    def of(group: str, size: int, losses: Mapping[int, float]) -> Curve:
        """Returns the curve of measured losses, {width in atoms: loss}; the full width may be missing."""
        points = sorted({size: 0.0, **losses}.items())
        return Curve(group, size, *zip(*points, strict=True))

    def cleaned(self) -> Curve:
        """Returns the curve with losses that are finite, not negative, and never rise with the width.

        Where measured losses rise, the falling sequence with the least squared distance from them is taken (isotonic
        regression). A loss that is not finite means that the network breaks at this width. It becomes ten times the
        largest finite loss, or 1 if there is none.
        """
        given = np.array(self.losses[:-1])
        finite = given[np.isfinite(given)]
        broken = 10 * float(finite.max(initial=0.0)) or 1.0
        falling = _falling(np.maximum(np.where(np.isfinite(given), given, broken), 0.0))
        return Curve(self.group, self.size, self.widths, (*falling.tolist(), 0.0))

    def hull(self) -> Curve:
        """Returns the cleaned curve with only the widths of its lower convex hull.

        The loss for each atom removed rises from one of these widths to the next smaller one.
        """
        clean = self.cleaned()
        points: list[tuple[int, float]] = []
        for point in zip(clean.widths, clean.losses, strict=True):
            while len(points) > 1 and _turns_down(points[-2], points[-1], point):
                points.pop()
            points.append(point)
        widths, losses = zip(*points, strict=True)
        return Curve(self.group, self.size, widths, losses)

    def joined(self, other: Curve) -> Curve:
        """Returns the curve with the widths of both; at a width of both it has the loss of the other curve.

        Raises:
            InputError: the other curve is one of another group or size.
        """
        if (self.group, self.size) != (other.group, other.size):
            raise InputError(
                f"a loss curve of {self.group!r} with {self.size} channels cannot be joined with one of "
                f"{other.group!r} with {other.size}"
            )
        losses = dict(zip(self.widths, self.losses, strict=True)) | dict(zip(other.widths, other.losses, strict=True))
        return Curve.of(self.group, self.size, losses)

    def at(self, width: int) -> float:
        """Returns the loss at a width in atoms; see `over`."""
        return float(self.over(np.array([width]))[0])

    def over(self, widths: np.ndarray, measured: bool = False) -> np.ndarray:
        """Returns the losses at given widths, in float64, never rising with the width.

        Between measured widths the square root of the loss is interpolated linearly: a divergence grows with the square
        of a small disturbance. docs/widths_gap.md compares this scale with others on measured curves.

        Below the smallest measured width the loss is unknown, and a high loss is assumed. Its square root rises with
        the steepest slope of the curve, and at least as fast as the width falls: half the width, four times the loss.
        A curve that is 0 at its smallest width stays 0. The loss is infinite at width 0, and at all widths below the
        full one if no other was measured.

        Args:
            widths: widths in atoms, from 0 to `size`.
            measured: True for an infinite loss at all widths that were not measured.
        """
        clean = self.cleaned()
        known, roots = np.array(clean.widths, dtype=float), np.sqrt(clean.losses)
        given = np.asarray(widths, dtype=float)
        root = np.interp(given, known, roots)
        below = given < known[0]
        if below.any():
            slope = max((np.diff(roots) / -np.diff(known)).max(initial=0.0), 0.0)
            far = given[below]
            shares = np.divide(known[0], far, out=np.full(len(far), np.inf), where=far > 0)
            assumed = np.maximum(roots[0] + slope * (known[0] - far), roots[0] * np.where(far > 0, shares, 1.0))
            root[below] = np.where((far > 0) & (len(known) > 1), assumed, np.inf)
        if measured:
            root[~np.isin(given, known)] = np.inf
        return root**2

    def to_json(self) -> dict[str, Any]:
        """Returns the curve as data for JSON; losses that are not finite become null."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        return {"group": self.group, "size": self.size, "widths": list(self.widths), "losses": losses}

    @staticmethod
    def from_json(data: Any) -> Curve:
        """Returns the curve from the data that `to_json` gives.

        Raises:
            InputError: the data is not a curve.
        """
        whole = isinstance(data, Mapping) and isinstance(data.get("group"), str) and _whole(data.get("size"))
        lists = whole and all(isinstance(data.get(key), (list, tuple)) for key in ("widths", "losses"))
        if not lists or not all(map(_whole, data["widths"])) or not all(map(_number, data["losses"])):
            raise InputError(f"this is not a loss curve: {str(data)[:80]!r}; it needs group, size, widths and losses")
        losses = tuple(math.nan if loss is None else loss for loss in data["losses"])
        return Curve(data["group"], data["size"], tuple(data["widths"]), losses)


def _falling(values: np.ndarray) -> np.ndarray:
    """Returns the sequence that never rises with the least squared distance from given values (pool adjacent
    violators)."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        mean, count = value, 1
        while pools and pools[-1][0] < mean:
            earlier, number = pools.pop()
            mean, count = (mean * count + earlier * number) / (count + number), count + number
        pools.append((mean, count))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools])


def _turns_down(first: tuple[int, float], middle: tuple[int, float], last: tuple[int, float]) -> bool:
    """True if the middle point is on or above the line through the two others."""
    (x0, y0), (x1, y1), (x2, y2) = first, middle, last
    return (y1 - y0) * (x2 - x0) >= (y2 - y0) * (x1 - x0)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
