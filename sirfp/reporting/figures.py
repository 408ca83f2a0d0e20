"""Figures: how many channels each group keeps, and what networks predict. Written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..files.whole import whole_file
from ..structure.plan import PruningPlan

if TYPE_CHECKING:  # it is imported where something is drawn: a run starts without
    from matplotlib.figure import Figure

DENSE, KEPT, INK, FAINT = "#d9dee5", "#2f6db5", "#22272e", "#8a929c"
RIGHT, WRONG = "#15803d", "#c0262d"
LUMA = (0.299, 0.587, 0.114)
"""How bright red, green and blue look."""
LABEL = 44
"""Most letters of a group's name."""
DPI = 130


def kept_channels(plan: PruningPlan, path: str | os.PathLike[str]) -> None:
    """Draws the channels that each group keeps beside those it had, in the order of the model.

    Args:
        plan: the plan.
        path: the PNG file.
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
    """Draws a grid: each scene a row, with its image, the truth, and what each network predicts.

    Args:
        images: (H, W, 3) RGB in 0..255.
        truths: (H, W) class indices, or `ignore`.
        predicted: {name of the network: (H, W) class indices of each image}.
        classes: their names.
        path: the PNG file.
        ignore: the label of pixels that do not count; they are drawn white.
        palette: (classes, 3) colours in 0..1.
    """
    if not len(images):
        raise InputError("there is no scene to draw")
    columns = {"image": images, "truth": truths, **predicted}
    uneven = [name for name, column in columns.items() if len(column) != len(images)]
    if uneven:
        raise ValueError(f"{len(images)} images, but {len(columns[uneven[0]])} of {uneven[0]!r}")
    palette = colours(len(classes)) if palette is None else np.asarray(palette, dtype=float)
    height, width = np.asarray(images[0]).shape[:2]
    cell = 2.4
    legend_rows = -(-len(classes) // 8)
    figure, grid = _figure(
        cell * len(columns),
        cell * height / width * len(images) + 0.2 + 0.22 * legend_rows,
        (len(images), len(columns)),
    )
    for j, (name, column) in enumerate(columns.items()):
        for i, content in enumerate(column):
            axes = grid[i, j]
            pixels = np.asarray(content)
            shown = np.clip(pixels, 0, 255).astype(np.uint8) if name == "image" else paint(pixels, palette, ignore)
            axes.imshow(shown, interpolation="nearest" if min(pixels.shape[:2]) < 200 else "antialiased")
            axes.set_axis_off()
            if i == 0:
                axes.set_title(name, fontsize=9, color=INK, pad=4)
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for colour, name in zip(palette, classes, strict=True)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(8, len(classes)), fontsize=7.5, frameon=False,
        handlelength=1, handleheight=1, columnspacing=1.2,
    )  # fmt: skip
    _write(figure, path)


@dataclass(frozen=True)
class Picture:
    """An image with what is said of it.

    Attributes:
        pixels: (H, W, 3) RGB in 0..255.
        title: a line above it.
        boxes: (left, top, right, bottom) in pixels.
        names: of what is in each box.
        colours: of each box.
        lines: (text, its colour) below the image.
    """

    pixels: np.ndarray
    title: str = ""
    boxes: Sequence[Sequence[float]] = ()
    names: Sequence[str] = ()
    colours: Sequence[Sequence[float]] = ()
    lines: Sequence[tuple[str, str]] = ()


def gallery(rows: Sequence[Sequence[Picture]], path: str | os.PathLike[str], cell: float = 2.4) -> None:
    """Draws pictures in rows of one length, with their boxes and lines.

    Args:
        rows: the pictures.
        path: the PNG file.
        cell: width of a picture in inches.
    """
    from matplotlib.patches import Rectangle

    if not rows or not rows[0]:
        raise InputError("there is no picture to draw")
    tall = sum(max(p.pixels.shape[0] / p.pixels.shape[1] for p in row) for row in rows)
    lines = max(len(picture.lines) for row in rows for picture in row)
    height = cell * tall + len(rows) * (0.17 * lines + 0.22)
    figure, grid = _figure(cell * len(rows[0]), height, (len(rows), len(rows[0])))
    for axes, picture in zip(grid.flat, (picture for row in rows for picture in row), strict=True):
        axes.imshow(np.clip(picture.pixels, 0, 255).astype(np.uint8), interpolation="antialiased")
        axes.set_axis_off()
        axes.set_title(picture.title, fontsize=8.5, color=INK, pad=3)
        for (left, top, right, bottom), name, colour in zip(picture.boxes, picture.names, picture.colours, strict=True):
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=colour, linewidth=1.2))
            axes.text(
                left, top, name, fontsize=5.5, va="bottom", clip_on=True,
                color="white" if np.dot(colour, LUMA) < 0.55 else INK,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
        for i, (text, colour) in enumerate(picture.lines):
            place = {"xy": (0.5, 0), "xycoords": "axes fraction", "textcoords": "offset points"}
            axes.annotate(text, xytext=(0, -3 - 11 * i), ha="center", va="top", fontsize=8, color=colour, **place)
    _write(figure, path)


def evenly_spaced(items: Sequence[Any], count: int) -> list[Any]:
    """At most so many items, evenly over all of them."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in places]


def paint(labels: np.ndarray, palette: np.ndarray, ignore: int = 255) -> np.ndarray:
    """Colours a label map, (H, W) to (H, W, 3) in 0..1; white where it is `ignore` or no class."""
    table = np.vstack([palette, np.ones((1, 3))])
    outside = (labels < 0) | (labels >= len(palette)) | (labels == ignore)
    return table[np.where(outside, np.intp(len(palette)), labels)]


def colours(count: int) -> np.ndarray:
    """Colours that are told apart easily, (count, 3) in 0..1: a grey, matplotlib's tab20, then a wheel of hues."""
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    table = np.array(colormaps["tab20"].colors)
    listed = np.delete(np.concatenate([table[::2], table[1::2]]), [7, 17], axis=0)  # its own greys
    index = np.arange(max(0, count - 1 - len(listed)))
    hues = np.stack([(index * 0.6180339887) % 1, 0.4 + 0.25 * (index % 3), 0.6 + 0.3 * (index % 2)], axis=1)
    return np.concatenate([[[0.6, 0.6, 0.6]], listed, hsv_to_rgb(hues)])[:count]


def shorten(names: Sequence[str], longest: int = LABEL) -> list[str]:
    """Shortens dotted names for an axis: without what all begin with, and then in the middle; all stay distinct."""
    parts = [name.split(".") for name in names]
    common = 0
    while len(names) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    tails = [".".join(p[common:]) for p in parts]
    short = [_elide(tail, longest) for tail in tails]
    return [s if short.count(s) == 1 else t for s, t in zip(short, tails, strict=True)]


def _elide(name: str, longest: int) -> str:
    """Leaves out parts after the first, or letters where the last part alone is too long."""
    if len(name) <= longest:
        return name
    first, *rest = name.split(".")
    for start in range(1, len(rest)):
        shorter = f"{first}…{'.'.join(rest[start:])}"
        if len(shorter) <= longest:
            return shorter
    return f"{name[: longest // 3]}…{name[len(name) - (longest - longest // 3 - 1) :]}"


def _figure(width: float, height: float, shape: tuple[int, int] | None = None):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if shape is None:
        return figure, figure.subplots()
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    return figure, figure.subplots(*shape, squeeze=False)


def _write(figure: Figure, path: str | os.PathLike[str]) -> None:
    with whole_file(path) as beside:
        figure.savefig(beside, format="png")
