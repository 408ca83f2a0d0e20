"""Inline SVG and tables of the report: the trade-off of a task's model, and the channels that each layer keeps.

Colours are classes and variables of `page.css`, so both follow the page's theme.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..reporting.figures import shorten
from .results import Row, mean_and_std, number

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 150, 84, 18, 60
"""Margins of the plot in pixels: criteria are named on the left, the metric's ticks are on the right."""
MARKERS = ("circle", "square", "diamond", "triangle")
COLOURS = 8
"""Number of colours for criteria in `page.css`, classes s0 to s7; later criteria reuse them with another marker."""
PERCENTAGES = {"mIoU", "fwIoU", "mACC", "pACC", "top1", "top5", "top-1", "top-5"}
"""Names of metrics in per cent, beside the APs of detection."""
LABEL_GAP = 20
"""Least distance between two labels in pixels: the height of a line of text."""
INTERVALS = 5
"""Intended number of intervals between the ticks of the metric's axis."""


@dataclass(frozen=True)
class _Scale:
    """Maps values to pixels of the chart.

    Attributes:
        least: smallest share of FLOPs on the horizontal axis; the largest is 1.02, so that markers at 1 fit.
        low, high: range of the metric on the vertical axis.
        step: distance between ticks on the vertical axis.
    """

    least: float
    low: float
    high: float
    step: float

    def x(self, share: float) -> float:
        """Horizontal position of a share of FLOPs."""
        return LEFT + (share - self.least) / (1.02 - self.least) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Vertical position of a value of the metric."""
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def trade_off(found: Sequence[Row]) -> str:
    """Draws the metric over the share of FLOPs kept, with a line per criterion.

    A line ends at the network that was trained on without pruning, if there is one: it has trained for as long as the
    pruned ones. Otherwise it ends at the dense network.

    Args:
        found: the rows of one task and model.

    Returns:
        SVG.
    """
    scale, metric = _scale(found), found[0].metric
    unpruned = [row for row in found if not row.pruned]
    end = _end(found)
    series = _by_criterion(found)
    heights = {name: scale.y(points[0][1].mean) for name, points in series.items()}
    heights |= {row.criterion: scale.y(row.mean) for row in unpruned}
    labels = _spread_labels(heights, LABEL_GAP, TOP + 6, HEIGHT - BOTTOM)
    parts = [
        f'<div class="scroll"><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
        f'{escape(metric)} over the share of FLOPs kept, by criterion">'
    ]
    parts += _axes(scale, axis_title(metric))
    for row in unpruned:
        height = f"{scale.y(row.mean):.1f}"
        parts.append(f'<line class="dense" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
    for i, (name, points) in enumerate(series.items()):
        parts.append(_series(i, name, points, end, scale, labels[name]))
    for row in unpruned:
        parts.append(_unpruned(row, scale, labels[row.criterion]))
    return "".join([*parts, "</svg></div>"])


def _end(found: Sequence[Row]) -> Row | None:
    """The row at which lines end: networks trained on without pruning, else the dense networks, else none."""
    unpruned = [row for row in found if not row.pruned]
    return next((row for row in unpruned if not row.dense), unpruned[0] if unpruned else None)


def explanation(found: Sequence[Row]) -> str:
    """What the chart of `trade_off` shows, as a text beside it."""
    end = _end(found)
    if end is None:
        text = "A line per criterion."
    elif end.dense:
        text = (
            "A line per criterion, to the dense network before pruning. The dense network has trained for fewer "
            "iterations than the pruned ones, so that these can lie above it."
        )
    else:
        text = (
            f"A line per criterion, to {end.criterion}: the dense network, trained on for as many iterations as a run "
            "with pruning."
        )
    bars = " Bars: the standard deviation over seeds." if any(row.std for row in found) else ""
    return escape(f"{text} Dashed: networks that keep all channels.{bars} Values are shown where the pointer rests.")


def axis_title(metric: str) -> str:
    """The name of a metric for an axis, with its unit where it is known: "mIoU, %"."""
    name = metric.rpartition("/")[2]
    return f"{name}, %" if name in PERCENTAGES or re.fullmatch(r"AP(\d+|[slm]|-.+)?", name) else name


def _scale(found: Sequence[Row]) -> _Scale:
    """Returns axes whose ranges include all rows and their standard deviations."""
    low = min(row.mean - (row.std or 0) for row in found)
    high = max(row.mean + (row.std or 0) for row in found)
    shares = [row.flops_kept for row in found if row.flops_kept is not None]
    return _Scale(max(0.0, min(shares, default=0.0) - 0.05), *_round_range(low, high))


def _by_criterion(found: Sequence[Row]) -> dict[str, list[tuple[float, Row]]]:
    """{criterion: [(share of FLOPs kept, row)]} for the rows of pruned networks, sorted by the share."""
    series: dict[str, list[tuple[float, Row]]] = {}
    for row in found:
        if row.pruned and row.flops_kept is not None:
            series.setdefault(row.criterion, []).append((row.flops_kept, row))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in series.items()}


def _axes(scale: _Scale, title: str) -> Iterator[str]:
    """Grid lines, ticks and the titles of both axes."""
    value = scale.low
    while value <= scale.high + 1e-9:
        height = scale.y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>'
        yield f'<text class="tick" x="{WIDTH - RIGHT + 10}" y="{height + 5:.1f}">{value:g}</text>'
        value = round(value + scale.step, 9)
    for share in (i / 10 for i in range(1, 11)):
        if share >= scale.least:
            yield f'<text class="tick middle" x="{scale.x(share):.1f}" y="{HEIGHT - 36}">{share:.0%}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text class="tick middle" x="{middle:.0f}" y="{HEIGHT - 6}">FLOPs kept, % of the dense network</text>'
    x, y = WIDTH - 6, (TOP + HEIGHT - BOTTOM) / 2
    yield f'<text class="tick middle" transform="translate({x} {y:.0f}) rotate(-90)">{escape(title)}</text>'


def _series(
    index: int, name: str, points: Sequence[tuple[float, Row]], end: Row | None, scale: _Scale, label: float
) -> str:
    """The line of one criterion with its markers, error bars and label.

    Args:
        index: number of the criterion; sets colour and marker.
        name: name of the criterion.
        points: (share of FLOPs kept, row) pairs, see `_by_criterion`.
        end: row of the network with all channels where the line ends; None for no such end.
        scale: axes of the chart.
        label: vertical position of the label in pixels.
    """
    places = [(scale.x(share), scale.y(row.mean)) for share, row in points]
    line = [*places, (scale.x(1.0), scale.y(end.mean))] if end else places
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
    parts = [f'<g class="s{index % COLOURS}">', f'<polyline class="line" points="{path}"/>']
    for (share, row), (x, y) in zip(points, places, strict=True):
        tooltip = f"{name}: {row.metric} {mean_and_std(row.mean, row.std)} at {share:.1%} of the FLOPs"
        bar = ""
        if row.std:
            bar = f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{scale.y(row.mean + row.std):.1f}" '
            bar += f'y2="{scale.y(row.mean - row.std):.1f}"/>'
        parts.append(f"<g><title>{escape(tooltip)}</title>{bar}{_marker(index, x, y)}</g>")
    return "".join([*parts, _label(name, label, places[0]), "</g>"])


def _unpruned(row: Row, scale: _Scale, label: float) -> str:
    """The marker and label of the dense network or of a control run (trained further without pruning)."""
    tooltip = escape(f"{row.criterion}: {row.metric} {mean_and_std(row.mean, row.std)}")
    place = f'cx="{scale.x(1):.1f}" cy="{scale.y(row.mean):.1f}" r="5"'
    return (
        f'<circle class="full" {place}><title>{tooltip}</title></circle>'
        f'<text class="tick end" x="{LEFT - 14}" y="{label + 4:.1f}">{escape(row.criterion)}</text>'
    )


def kept_channels(widths: Mapping[str, Sequence[Mapping[str, Sequence[int]]]]) -> str:
    """An HTML table of the channels that each layer keeps, averaged over seeds; cells are shaded by the share kept.

    Args:
        widths: {column title: [{group: (kept, dense)}]}, a list with one entry per seed.
    """
    groups = list(dict.fromkeys(group for runs in widths.values() for run in runs for group in run))
    short = dict(zip(groups, shorten(groups), strict=True))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in widths)
    lines = []
    for group in groups:
        dense = max(run[group][1] for runs in widths.values() for run in runs if group in run)
        kept = ([run[group][0] for run in runs if group in run] for runs in widths.values())
        cells = "".join(_kept_cell(counts, dense) for counts in kept)
        name = f'<th scope="row" title="{escape(group)}">{escape(short[group])}</th>'
        lines.append(f"<tr>{name}<td>{dense}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="channels"><thead><tr><th scope="col">layer</th><th scope="col">dense</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _kept_cell(counts: Sequence[int], dense: int) -> str:
    """A cell with the mean of channel counts; "-" if `counts` is empty."""
    if not counts:
        return "<td>-</td>"
    mean = statistics.fmean(counts)
    text = number(mean, 0 if mean == round(mean) else 1)
    return f'<td class="share" style="--share:{100 * mean / dense:.0f}%">{text}</td>'


def _label(name: str, height: float, point: tuple[float, float]) -> str:
    """The name of a criterion at the left, with a line to its first point."""
    text = escape(name if len(name) < 18 else f"{name[:16]}…")  # shortened to fit into the left margin
    x, y = point
    leader = f'<line class="leader" x1="{LEFT - 10}" y1="{height:.1f}" x2="{x - 7:.1f}" y2="{y:.1f}"/>'
    return f'{leader}<text class="name end" x="{LEFT - 14}" y="{height + 4:.1f}">{text}</text>'


def _marker(series: int, x: float, y: float) -> str:
    """The symbol of a point. Symbols differ between criteria, so that a chart is readable without colours."""
    kind = MARKERS[series % len(MARKERS)]
    if kind == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    shapes = {
        "square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -6), (5.5, 4.5), (-5.5, 4.5)),
    }
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in shapes[kind])
    return f'<polygon class="mark" points="{points}"/>'


def _round_range(low: float, high: float) -> tuple[float, float, float]:
    """Extends a range to multiples of a round step: 1, 2 or 5 times a power of ten, about `INTERVALS` steps.

    Returns:
        The lower end, the upper end and the step.
    """
    extent = max(high - low, 1e-3 * abs(high)) or 1.0
    rough = extent / INTERVALS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step) * step, math.ceil(high / step) * step
    return round(first, 9), round(last if last > first else first + step, 9), round(step, 9)


def _spread_labels(heights: Mapping[str, float], gap: float, top: float, bottom: float) -> dict[str, float]:
    """Moves labels apart so that they do not overlap.

    Args:
        heights: {label: desired vertical position in pixels}.
        gap: least distance between two labels in pixels.
        top, bottom: limits of the positions.

    Returns:
        {label: vertical position in pixels}.
    """
    names = sorted(heights, key=heights.__getitem__)
    places: list[float] = []
    for name in names:
        places.append(max(heights[name], places[-1] + gap if places else top))
    over = max(0.0, (places[-1] if places else 0.0) - bottom)
    for i in range(len(places) - 1, -1, -1):  # from the bottom up: a label below the limit pushes its neighbours up
        limit = bottom if i == len(places) - 1 else places[i + 1] - gap
        places[i] = min(places[i], limit) if over else places[i]
    return dict(zip(names, places, strict=True))
