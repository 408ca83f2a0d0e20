"""Inline SVG and tables of the report: the trade-off of a task's model, and the channels that each layer keeps.

Colours are classes and variables of `page.css`, so both follow the page's theme.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from ..reporting.figures import shorten
from .results import Row, mean_and_std, number

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 150, 64, 18, 60
MARKS = ("circle", "square", "diamond", "triangle")
SERIES = 8
"""How many colours there are."""


def trade_off(found: Sequence[Row]) -> str:
    """The metric over the share of FLOPs kept, a line for each criterion from the dense network on; SVG.

    Args:
        found: the rows of one task and model.
    """
    dense = next((row for row in found if row.dense), None)
    names = list(dict.fromkeys(row.criterion for row in found if row.pruned))
    whole = [row for row in found if not row.pruned]
    points = {name: sorted((r for r in found if r.criterion == name), key=lambda r: r.flops_kept) for name in names}
    spans = [(row.mean - (row.std or 0), row.mean + (row.std or 0)) for row in found]
    low, high = min(s[0] for s in spans), max(s[1] for s in spans)
    low, high, step = _round((low, high))
    shares = [row.flops_kept for row in found if row.flops_kept is not None]
    least = max(0.0, (min(shares) if shares else 0.0) - 0.05)

    def x(value: float) -> float:
        return LEFT + (value - least) / (1.02 - least) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    metric = found[0].metric
    parts = [
        f'<div class="scroll"><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
        f'{escape(metric)} over the share of FLOPs kept, by criterion">'
    ]
    value = low
    while value <= high + 1e-9:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="tick" x="{WIDTH - RIGHT + 10}" y="{y(value) + 5:.1f}">{value:g}</text>')
        value = round(value + step, 9)
    for share in (i / 10 for i in range(1, 11)):
        if share >= least:
            parts.append(f'<text class="tick middle" x="{x(share):.1f}" y="{HEIGHT - 36}">{share:.0%}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick middle" x="{middle:.0f}" y="{HEIGHT - 6}">FLOPs kept</text>')
    for row in whole:
        height = f"{y(row.mean):.1f}"
        parts.append(f'<line class="dense" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>')
    labels = {name: y(rows[0].mean) for name, rows in points.items()} | {row.criterion: y(row.mean) for row in whole}
    places = _apart(labels, 20, TOP + 6, HEIGHT - BOTTOM)
    for i, (name, rows) in enumerate(points.items()):
        parts.append(f'<g class="s{i % SERIES}">')
        line = [(x(row.flops_kept), y(row.mean)) for row in rows]
        joined = [*line, (x(1.0), y(dense.mean))] if dense else line
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in joined)
        parts.append(f'<polyline class="line" points="{path}"/>')
        for row, (a, b) in zip(rows, line, strict=True):
            said = f"{name}: {metric} {mean_and_std(row.mean, row.std)} at {row.flops_kept:.1%} of the FLOPs"
            bar = ""
            if row.std:
                bar = f'<line class="bar" x1="{a:.1f}" x2="{a:.1f}" y1="{y(row.mean + row.std):.1f}" '
                bar += f'y2="{y(row.mean - row.std):.1f}"/>'
            parts.append(f"<g><title>{escape(said)}</title>{bar}{_mark(i, a, b)}</g>")
        parts.append(_label(name, places[name], line[0]))
        parts.append("</g>")
    for row in whole:
        said = escape(f"{row.criterion}: {metric} {mean_and_std(row.mean, row.std)}")
        place = f'cx="{x(1):.1f}" cy="{y(row.mean):.1f}" r="5"'
        parts.append(f'<circle class="full" {place}><title>{said}</title></circle>')
        at = places[row.criterion] + 4
        parts.append(f'<text class="tick end" x="{LEFT - 14}" y="{at:.1f}">{escape(row.criterion)}</text>')
    return "".join([*parts, "</svg></div>"])


def kept_channels(widths: Mapping[str, Sequence[Mapping[str, Sequence[int]]]]) -> str:
    """A table of layers and prunings: the channels that stay, shaded by their share; mean over seeds.

    Args:
        widths: {name of the pruning: [{group: (kept, dense)} of each seed]}.
    """
    groups = list(dict.fromkeys(group for runs in widths.values() for run in runs for group in run))
    short = dict(zip(groups, shorten(groups), strict=True))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in widths)
    lines = []
    for group in groups:
        dense = max(run[group][1] for runs in widths.values() for run in runs if group in run)
        cells = []
        for runs in widths.values():
            kept = [run[group][0] for run in runs if group in run]
            if not kept:
                cells.append("<td>-</td>")
                continue
            mean = statistics.fmean(kept)
            cells.append(_share(mean, dense))
        name = f'<th scope="row" title="{escape(group)}">{escape(short[group])}</th>'
        lines.append(f"<tr>{name}<td>{dense}</td>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="channels"><thead><tr><th scope="col">layer</th><th scope="col">dense</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _share(mean: float, dense: int) -> str:
    text = number(mean, 0 if mean == round(mean) else 1)
    return f'<td class="share" style="--share:{100 * mean / dense:.0f}%">{text}</td>'


def _label(name: str, at: float, point: tuple[float, float]) -> str:
    shown = escape(name if len(name) < 18 else f"{name[:16]}…")
    a, b = point
    leader = f'<line class="leader" x1="{LEFT - 10}" y1="{at:.1f}" x2="{a - 7:.1f}" y2="{b:.1f}"/>'
    return f'{leader}<text class="name end" x="{LEFT - 14}" y="{at + 4:.1f}">{shown}</text>'


def _mark(series: int, x: float, y: float) -> str:
    kind = MARKS[series % len(MARKS)]
    if kind == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    shapes = {
        "square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -6), (5.5, 4.5), (-5.5, 4.5)),
    }
    points = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in shapes[kind])
    return f'<polygon class="mark" points="{points}"/>'


def _round(span: tuple[float, float]) -> tuple[float, float, float]:
    """A span that begins and ends at steps of 1, 2 or 5 times a power of ten, with about five of them."""
    low, high = span
    room = max(high - low, 1e-3 * abs(high)) or 1.0
    rough = room / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step) * step, math.ceil(high / step) * step
    return round(first, 9), round(last if last > first else first + step, 9), round(step, 9)


def _apart(labels: Mapping[str, float], gap: float, top: float, bottom: float) -> dict[str, float]:
    """Heights near those asked for, at least a gap apart."""
    names = sorted(labels, key=labels.__getitem__)
    places: list[float] = []
    for name in names:
        places.append(max(labels[name], places[-1] + gap if places else top))
    over = max(0.0, (places[-1] if places else 0.0) - bottom)
    for i in range(len(places) - 1, -1, -1):  # what hangs over the edge pushes back
        limit = bottom if i == len(places) - 1 else places[i + 1] - gap
        places[i] = min(places[i], limit) if over else places[i]
    return dict(zip(names, places, strict=True))
