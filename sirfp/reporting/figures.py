"""Draws figures: channels kept by each group, predictions of networks. PNG files are written atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..files.whole import whole_file
from ..structure.plan import PruningPlan

if TYPE_CHECKING:  # matplotlib is imported only for drawing, so that a run starts without it
    from matplotlib.figure import Figure

DENSE, KEPT, INK, FAINT = "#d9dee5", "#2f6db5", "#22272e", "#8a929c"
RIGHT, WRONG = "#15803d", "#c0262d"
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in perceived brightness (luma of ITU-R BT.601)."""
DARK = 0.55
"""Brightness below which the text on a colour is white; above it, the text is dark."""
LABEL = 44
"""Greatest number of letters of a group's name on an axis."""
DPI = 130
LEGEND_COLUMNS = 8
"""Number of classes in a row of the legend."""
MARKED = 7
"""Number of the most, and of the least, sensitive groups that have a colour and a name in a figure of loss curves."""
GOLDEN = 0.6180339887
"""Step of the hue from class to class, the golden ratio: neighbouring classes get distinct hues for any number."""


def kept_channels(plan: PruningPlan, path: str | os.PathLike[str]) -> None:
    """Draws a bar per group with the numbers of dense and kept channels, in the order of the model.

    Args:
        plan: the plan.
        path: the PNG file.

    Raises:
        InputError: the plan has no group.
    """
    names = list(plan.kept)
    if not names:
        raise InputError("the plan has no group of channels to draw")
    kept = np.array([len(plan.kept[name]) for name in names])
    dense = np.array([plan.channels[name] for name in names])
    figure, axes = _figure(9.0, 1.25 + 0.2 * len(names))
    rows = np.arange(len(names))
    axes.barh(rows, dense, height=0.74, color=DENSE, label="dense")
    axes.barh(rows, kept, height=0.74, color=KEPT, label="kept")
    right = dense.max()
    for row, (k, d) in enumerate(zip(kept.tolist(), dense.tolist(), strict=True)):
        axes.text(d + 0.008 * right, row, f"{k} of {d}", va="center", fontsize=7, color=FAINT if k == d else INK)
    axes.set_yticks(rows, shorten(names), fontsize=7.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, right * 1.12)
    axes.set_xlabel("channels", fontsize=9, color=INK)
    axes.tick_params(length=0, labelsize=7.5, colors=INK)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.8)
    axes.spines[:].set_visible(False)
    flops, params = plan.flops[1] / max(1, plan.flops[0]), plan.params[1] / max(1, plan.params[0])
    criterion = f"{plan.criterion}: " if plan.criterion else ""
    title = f"{criterion}{flops:.1%} of the FLOPs and {params:.1%} of the parameters kept"
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    _write(figure, path)


def loss_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], path: str | os.PathLike[str], title: str = ""
) -> None:
    """Draws loss curves on a logarithmic axis: those of the most and the least sensitive groups in colour, others grey.

    Losses that are not above 0, or not finite, are left out.

    Args:
        curves: {group: (share of the channels kept, divergence) of each width}, the most sensitive group first.
        path: the PNG file.
        title: the name of the network.

    Raises:
        InputError: no group was measured at a reduced width.
    """
    drawn = {
        name: [(100 * share, loss) for share, loss in points if 0 < loss < np.inf] for name, points in curves.items()
    }
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        raise InputError("there is no loss curve to draw: no group lost anything at a reduced width")
    names = list(drawn)
    count = min(MARKED, (len(names) + 1) // 2)
    most, least = names[:count], names[count:][-count:]
    figure, axes = _figure(9.0, 5.4)
    labels = dict(zip(names, shorten(names), strict=True))
    from matplotlib import colormaps

    handles = {}
    for kind, marked, colour_map in (("most", most, "autumn"), ("least", least, "winter")):
        shades = colormaps[colour_map](np.linspace(0.0, 0.75, max(2, len(marked))))
        handles[kind] = [
            axes.plot(*zip(*drawn[name], strict=True), color=shade, label=labels[name], linewidth=1.6, marker="o",
                      markersize=3.5, zorder=3)[0]
            for name, shade in zip(marked, shades, strict=False)
        ]  # fmt: skip
    for name in names[count : len(names) - len(least)]:
        axes.plot(*zip(*drawn[name], strict=True), color=DENSE, linewidth=0.9, zorder=2)
    axes.set_yscale("log")
    axes.set_xlim(0, 100)
    axes.set_xlabel("channels of the group kept, %", fontsize=9, color=INK)
    axes.set_ylabel("divergence from the dense network's output, nats", fontsize=9, color=INK)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    rest = len(names) - count - len(least)
    others = f"; {rest} others in grey" if rest else ""
    axes.set_title(f"{title}: one group cut alone{others}".lstrip(": "), loc="left", fontsize=10, color=INK, pad=8)
    places: dict[str, Any] = {"most": "outside right upper", "least": "outside right lower"}
    for kind, place in places.items():
        if handles[kind]:
            legend = figure.legend(
                handles=handles[kind], loc=place, fontsize=7.5, frameon=False, title=f"{kind} sensitive",
                title_fontsize=8.5, alignment="left",
            )  # fmt: skip
            legend.get_title().set_color(INK)
    _write(figure, path)


def predictions(
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predicted: Mapping[str, Sequence[np.ndarray]],
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    ignore: int = 255,
    palette: np.ndarray | None = None,
) -> None:
    """Draws a row per image: the image, its ground truth, and the prediction of each network.

    Args:
        images: (H, W, C) in 0..255, of any number of channels (`as_rgb`).
        truths: (H, W) class indices of each image, or `ignore`.
        predicted: {name of the network: (H, W) class indices of each image}.
        classes: names of the classes.
        path: the PNG file.
        ignore: label of pixels without a class, which are drawn white.
        palette: (classes, 3) colours in 0..1; `colours` by default.

    Raises:
        InputError: there is no image.
        ValueError: `truths` or a list of predictions differs from `images` in length.
    """
    if not len(images):
        raise InputError("there is no image to draw")
    columns = {"image": images, "truth": truths, **predicted}
    uneven = [name for name, column in columns.items() if len(column) != len(images)]
    if uneven:
        raise ValueError(f"{len(images)} images, but {len(columns[uneven[0]])} of {uneven[0]!r}")
    palette = colours(len(classes)) if palette is None else np.asarray(palette, dtype=float)
    height, width = np.asarray(images[0]).shape[:2]
    cell = 2.4
    legend_rows = -(-len(classes) // LEGEND_COLUMNS)
    figure, grid = _figure(
        cell * len(columns),
        cell * height / width * len(images) + 0.2 + 0.22 * legend_rows,
        (len(images), len(columns)),
    )
    for j, (name, column) in enumerate(columns.items()):
        for i, content in enumerate(column):
            axes = grid[i, j]
            pixels = np.asarray(content)
            drawn = as_rgb(pixels) if name == "image" else paint(pixels, palette, ignore)
            axes.imshow(drawn, interpolation="nearest" if min(pixels.shape[:2]) < 200 else "antialiased")
            axes.set_axis_off()
            if i == 0:
                axes.set_title(name, fontsize=9, color=INK, pad=4)
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for colour, name in zip(palette, classes, strict=True)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(classes)), fontsize=7.5,
        frameon=False, handlelength=1, handleheight=1, columnspacing=1.2,
    )  # fmt: skip
    _write(figure, path)


@dataclass(frozen=True)
class Picture:
    """An image with boxes and captions.

    Attributes:
        pixels: (H, W, C) in 0..255, of any number of channels (`as_rgb`).
        title: a line above the image.
        boxes: (left, top, right, bottom) in pixels.
        names: label of each box.
        colours: colour of each box, RGB in 0..1.
        lines: (text, colour) of each line below the image.
    """

    pixels: np.ndarray
    title: str = ""
    boxes: Sequence[Sequence[float]] = ()
    names: Sequence[str] = ()
    colours: Sequence[Sequence[float]] = ()
    lines: Sequence[tuple[str, str]] = ()


def gallery(rows: Sequence[Sequence[Picture]], path: str | os.PathLike[str], cell: float = 2.4) -> None:
    """Draws pictures in a grid, with their boxes and captions.

    Args:
        rows: the pictures; rows have equal lengths.
        path: the PNG file.
        cell: width of a picture in inches.

    Raises:
        InputError: there is no picture.
    """
    from matplotlib.patches import Rectangle

    if not rows or not rows[0]:
        raise InputError("there is no picture to draw")
    tall = sum(max(p.pixels.shape[0] / p.pixels.shape[1] for p in row) for row in rows)
    lines = max(len(picture.lines) for row in rows for picture in row)
    height = cell * tall + len(rows) * (0.17 * lines + 0.22)
    figure, grid = _figure(cell * len(rows[0]), height, (len(rows), len(rows[0])))
    for axes, picture in zip(grid.flat, (picture for row in rows for picture in row), strict=True):
        axes.imshow(as_rgb(picture.pixels), interpolation="antialiased")
        axes.set_axis_off()
        axes.set_title(picture.title, fontsize=8.5, color=INK, pad=3)
        for (left, top, right, bottom), name, colour in zip(picture.boxes, picture.names, picture.colours, strict=True):
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=1.2))
            label = 7.5 / 72 * picture.pixels.shape[1] / cell  # height of a name in pixels; above the box if it fits
            axes.text(
                max(left, 0), max(top, label), name, fontsize=5.5, va="bottom", clip_on=True,
                color="white" if np.dot(colour, LUMA) < DARK else INK,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
        for i, (text, text_colour) in enumerate(picture.lines):
            axes.annotate(
                text, xy=(0.5, 0), xycoords="axes fraction", xytext=(0, -3 - 11 * i), textcoords="offset points",
                ha="center", va="top", fontsize=8, color=text_colour,
            )  # fmt: skip
    _write(figure, path)


def evenly_spaced(items: Sequence[Any], count: int) -> list[Any]:
    """Selects at most `count` items at equal distances, including the first and the last."""
    indices = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in indices]


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Returns an image (H, W, C) or (H, W) in 0..255 as (H, W, 3) of uint8 for drawing.

    One or two channels are drawn in grey by the first one. More than three are drawn by the first three: red, green and
    blue of an image with transparency.
    """
    shown = np.clip(np.atleast_3d(pixels), 0, 255).astype(np.uint8)
    return shown[..., :3] if shown.shape[-1] >= 3 else np.repeat(shown[..., :1], 3, axis=-1)


def paint(labels: np.ndarray, palette: np.ndarray, ignore: int = 255) -> np.ndarray:
    """Colours a label map: (H, W) to (H, W, 3) in 0..1. Pixels whose label is `ignore` or no class are white."""
    table = np.vstack([palette, np.ones((1, 3))])
    outside = (labels < 0) | (labels >= len(palette)) | (labels == ignore)
    return table[np.where(outside, np.intp(len(palette)), labels)]


def colours(count: int) -> np.ndarray:
    """Distinct colours, (count, 3) in 0..1: a grey, the colours of matplotlib's tab20, then computed hues."""
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    table = np.array(colormaps["tab20"](range(20)))[:, :3]
    listed = np.delete(np.concatenate([table[::2], table[1::2]]), [7, 17], axis=0)  # without tab20's greys
    index = np.arange(max(0, count - 1 - len(listed)))
    hues = np.stack([(index * GOLDEN) % 1, 0.4 + 0.25 * (index % 3), 0.6 + 0.3 * (index % 2)], axis=1)
    return np.concatenate([[[0.6, 0.6, 0.6]], listed, hsv_to_rgb(hues)])[:count]


def shorten(names: Sequence[str], longest: int = LABEL) -> list[str]:
    """Shortens dotted names for an axis: drops the common prefix, then parts in the middle. Names stay distinct."""
    parts = [name.split(".") for name in names]
    common = 0
    while len(names) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    tails = [".".join(p[common:]) for p in parts]
    short = [_elide(tail, longest) for tail in tails]
    return [s if short.count(s) == 1 else t for s, t in zip(short, tails, strict=True)]


def _elide(name: str, longest: int) -> str:
    """Shortens a dotted name to `longest` letters: drops parts after the first, or letters in the middle if needed."""
    if len(name) <= longest:
        return name
    first, *rest = name.split(".")
    for start in range(1, len(rest)):
        shorter = f"{first}…{'.'.join(rest[start:])}"
        if len(shorter) <= longest:
            return shorter
    return f"{name[: longest // 3]}…{name[len(name) - (longest - longest // 3 - 1) :]}"


def _figure(width: float, height: float, shape: tuple[int, int] | None = None) -> tuple[Figure, Any]:
    """Creates a figure of this size in inches with one axes, or with an array (rows, columns) of axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine()
    if shape is not None:
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots() if shape is None else figure.subplots(*shape, squeeze=False)


def _write(figure: Figure, path: str | os.PathLike[str]) -> None:
    with whole_file(path) as beside:
        figure.savefig(beside, format="png")
