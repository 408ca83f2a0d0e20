"""How sensitive a network is to fewer channels, group by group: loss curves as a table, as CSV and for a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..reporting.tables import Table, percent
from ..structure.groups import ChannelGroups
from .curve import Curve

COLUMNS = ("group", "channels", "kept", "share", "divergence", "flops_share")
"""The columns of the CSV file: a row is a measured width."""


@dataclass(frozen=True)
class Sensitivity:
    """The loss curve of a group, and what the group costs.

    Attributes:
        curve: the measured curve.
        atom_width: the number of channels of an atom in the module that names the group: above 1 e.g. for attention
            heads.
        flops: the share of the network's FLOPs that would go with all channels of the group.
    """

    curve: Curve
    atom_width: int
    flops: float

    @property
    def group(self) -> str:
        """The name of the group."""
        return self.curve.group

    @property
    def at_half(self) -> float:
        """The divergence with half of the channels, interpolated; infinite if only the full width was measured."""
        return float(self.curve.over(np.array([self.curve.size / 2]))[0])

    def points(self) -> list[tuple[float, float]]:
        """Returns (share of the channels kept, divergence) of each measured width, from the smallest."""
        size = self.curve.size
        return [(width / size, loss) for width, loss in zip(self.curve.widths, self.curve.losses, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Returns plain data for JSON; widths are in channels."""
        data, width = self.curve.to_json(), self.atom_width
        channels = {"channels": data["size"] * width, "widths": [kept * width for kept in data["widths"]]}
        return {"group": self.group, **channels, "losses": data["losses"], "flops_share": self.flops}


def sensitivities(found: ChannelGroups, curves: Mapping[str, Curve]) -> tuple[Sensitivity, ...]:
    """Returns the sensitivity of each group, in the order of the model.

    Args:
        found: the groups.
        curves: a loss curve of each.
    """
    whole = found.flops()

    def without(name: str) -> int:
        keep = np.ones(found.atoms, dtype=bool)
        keep[found.spans[name]] = False
        return found.flops(keep)

    return tuple(
        Sensitivity(curves[group.name], group.width, (whole - without(group.name)) / max(1, whole)) for group in found
    )


def ranked(measured: Iterable[Sensitivity]) -> list[Sensitivity]:
    """Returns sensitivities from the most to the least sensitive group, by the divergence with half of the channels.

    Groups of which no reduced width is allowed come last.
    """
    return sorted(measured, key=lambda one: one.at_half if len(one.curve.widths) > 1 else -1.0, reverse=True)


def table(measured: Iterable[Sensitivity], levels: Sequence[float]) -> Table:
    """Makes a table: a row per group, the most sensitive first.

    Args:
        measured: the sensitivities.
        levels: shares of the channels kept, one column each. A cell holds the measured width that is nearest to this
            level, if it is not nearer to another; else "-".
    """
    columns = sorted(set(levels), reverse=True)
    body = []
    for one in ranked(measured):
        cells: dict[float, tuple[float, float]] = {}
        for share, loss in one.points()[:-1]:
            level = columns[int(np.abs(np.array(columns) - share).argmin())]
            if level not in cells or abs(share - level) < abs(cells[level][0] - level):
                cells[level] = share, loss
        losses = [f"{cells[level][1]:.2g}" if level in cells else "-" for level in columns]
        body.append((one.group, str(one.curve.size * one.atom_width), *losses, percent(one.flops, 1)))
    return Table(("group", "channels", *(f"keeps {level:.0%}" for level in columns), "FLOPs"), tuple(body))


def csv_text(measured: Iterable[Sensitivity]) -> str:
    """Returns CSV with the columns `COLUMNS`: a row per group and measured width, in the order of the model."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in measured:
        for width, (share, loss) in zip(one.curve.widths, one.points(), strict=True):
            channels, kept = one.curve.size * one.atom_width, width * one.atom_width
            writer.writerow((one.group, channels, kept, share, loss, one.flops))
    return text.getvalue()
