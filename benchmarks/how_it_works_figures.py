"""The figures of docs/how_it_works.md that no other report draws: maps, a redundancy matrix, the greedy removal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from sirfp.reporting.figures import INK, KEPT, Picture, gallery, shorten
from sirfp.study.pictures import draw_matrix

GONE = "#c0262d"
LARGEST = 190_000
"""The largest size of a picture in bytes; larger ones get fewer colours."""
WIDEST = 1200
"""The largest width of a picture in pixels."""
COLUMNS = 8


def map_pairs(
    image: np.ndarray, maps: np.ndarray, redundancy: torch.Tensor, chosen: tuple[int, int, int], path: Path
) -> None:
    """Draws the image, a channel's map, and the maps of the channels most and least redundant with it."""
    first, *others = chosen
    row = [Picture(image, "the image"), Picture(coloured(maps[first]), f"channel {first}")]
    for what, other in zip(("most", "least"), others, strict=True):
        words = f"channel {other}, {what} redundant: {abs(float(redundancy[first, other])):.2g}"
        row.append(Picture(coloured(maps[other]), words))
    gallery([row], path, cell=2.2)


def map_rows(maps: np.ndarray, order: np.ndarray, kept: np.ndarray, path: Path) -> None:
    """Draws maps of the first channels to be removed and of the last; the frame's colour says which are kept."""
    stays = set(kept.tolist())
    count = min(2 * COLUMNS, len(order) // 2 // COLUMNS * COLUMNS or COLUMNS)
    chosen = [*order[:count].tolist(), *order[::-1][:count].tolist()]
    rows = []
    for start in range(0, len(chosen), COLUMNS):
        row = chosen[start : start + COLUMNS]
        rows.append([Picture(framed(coloured(maps[i]), KEPT if i in stays else GONE), str(i)) for i in row])
    gallery(rows, path, cell=1.0)


def matrices(redundancy: torch.Tensor, order: np.ndarray, kept: np.ndarray, path: Path) -> None:
    """Draws the redundancy matrix in the network's order of channels and in the greedy order."""
    values = redundancy.abs().numpy()
    top = np.quantile(values[~np.eye(len(values), dtype=bool)], 0.99)
    values, stays = np.clip(values / top, 0, 1), np.isin(np.arange(len(values)), kept)
    shown = [
        ("as the channels come", values, stays),
        ("in the order in which they are removed", values[order][:, order], stays[order]),
    ]
    pixels = [(title, np.asarray(draw_matrix(matrix, marks))) for title, matrix, marks in shown]
    words = f"dark: 0, yellow: {top:.2g} and more"
    gallery([[Picture(p, title, lines=[(words, INK)]) for title, p in pixels]], path, cell=3.6)


def greedy_curves(curves: Mapping[str, tuple[np.ndarray, int]], name: str, path: Path) -> None:
    """Draws, for each layer, the redundancy of the next channel to be removed; one layer in bold."""
    figure = Figure(figsize=(8.0, 3.6), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for other, (values, gone) in curves.items():
        share = (np.arange(len(values)) + 0.5) / len(values)
        look = {"linewidth": 2.6} if other == name else {"linewidth": 1.0, "alpha": 0.45}
        axes.plot(share[: gone + 1], values[: gone + 1], color=GONE, **look)
        axes.plot(share[gone:], values[gone:], color=KEPT, **look)
    for colour, words in ((GONE, "channels that go"), (KEPT, "channels that stay")):
        axes.plot([], [], color=colour, linewidth=2.6, label=words)
    axes.set_xlabel("share of its layer's channels removed before it", fontsize=9, color=INK)
    axes.set_ylabel("a channel's redundancy with\nthose still there", fontsize=9, color=INK)
    axes.set_title(f"bold: {shorten([name])[0]}", loc="left", fontsize=10, color=INK)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png")


def coloured(values: np.ndarray) -> np.ndarray:
    """A map as a picture, (H, W) to (H, W, 3) in 0..255: blue below 0, white at 0, red above."""
    top = max(float(np.abs(values).max()), 1e-12)
    return colormaps["RdBu_r"](0.5 + 0.5 * values / top)[..., :3] * 255


def framed(pixels: np.ndarray, colour: str) -> np.ndarray:
    """A picture in a frame."""
    width = max(1, round(0.03 * pixels.shape[1]))
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    whole = np.empty((pixels.shape[0] + 2 * width, pixels.shape[1] + 2 * width, 3))
    whole[:] = rgb
    whole[width:-width, width:-width] = pixels
    return whole


def narrowed(path: Path) -> None:
    """Makes a PNG smaller: limits its width, and reduces its colours if it is still too large."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    image.save(path, optimize=True)
    for colours in (256, 128, 64):
        if path.stat().st_size <= LARGEST:
            return
        image.quantize(colours, kmeans=1).save(path, optimize=True)
