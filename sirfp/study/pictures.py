"""Pictures of the report, embedded in the page as data: predictions drawn by runs, and redundancy matrices."""

from __future__ import annotations

import base64
import functools
import io
import zipfile
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

MATRICES = "redundancies.npz"
PREDICTIONS = "predictions.png"
WIDEST = 1100
"""Greatest width of a picture in pixels, about the width of the page; wider ones are scaled down."""
QUALITY = 82
"""WebP quality of pictures. All pictures are embedded in the page, so they must be small."""
SIDE = 224
"""Side of a drawn matrix in pixels; larger matrices are averaged in blocks."""
KEPT, GONE = (47, 109, 181), (217, 222, 229)


def predictions(folder: Path, alt: str) -> str:
    """A run's picture of predictions as an HTML image; "" if the run has drawn none."""
    return picture(folder / PREDICTIONS, alt)


def picture(file: Path, alt: str) -> str:
    """A picture as an HTML image, embedded as data; "" if the file is missing or is no picture."""
    if not file.is_file():
        return ""
    data = _picture(str(file), file.stat().st_mtime_ns)
    return f'<img class="picture" loading="lazy" src="{data}" alt="{escape(alt)}">' if data else ""


def matrices(folder: Path, criterion: str) -> str:
    """Redundancy matrices of a run's layers before and after pruning, as HTML figures; "" if there are none."""
    file = folder / MATRICES
    if not file.is_file():
        return ""
    try:
        return _matrices(str(file), file.stat().st_mtime_ns, criterion)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return ""


@functools.lru_cache(maxsize=256)
def _matrices(path: str, _changed: int, criterion: str) -> str:
    figures = []
    with np.load(path) as found:
        for i, name in enumerate(found["names"].tolist()):
            before, after = (found[f"{key}{i}"].astype(np.float32) for key in ("before", "after"))
            order, kept = found[f"order{i}"], found[f"kept{i}"]
            figures.append(_figure(name, before, after, order, kept, criterion))
    return "".join(figures)


def _figure(name: str, before: np.ndarray, after: np.ndarray, order: np.ndarray, kept: np.ndarray, by: str) -> str:
    """A layer's two matrices as an HTML figure.

    Args:
        name: name of the layer.
        before, after: (n, n) and (k, k) matrices of the dense and the pruned layer.
        order: (n,), channels in the order in which the greedy clique search would remove them.
        kept: (k,), channels that the criterion kept.
        by: name of the criterion.
    """
    stays = np.zeros(len(before), bool)
    stays[kept] = True
    rank = np.argsort(order)  # position of each channel in the removal order
    inner = np.argsort(rank[kept])
    agreement = stays[order[len(before) - len(kept) :]].mean() if len(kept) else 0.0
    captioned = [
        (
            f"before: {len(before)} channels, mean {_mean(before):.3f}",
            draw_matrix(before[order][:, order], stays[order]),
        ),
        (f"after: {len(after)} channels, mean {_mean(after):.3f}", draw_matrix(after[inner][:, inner], None)),
    ]
    images = "".join(
        f'<div><img class="matrix" width="{SIDE}" height="{SIDE}" src="{_data(image, "PNG")}" alt="{escape(caption)}">'
        f"<span>{escape(caption)}</span></div>"
        for caption, image in captioned
    )
    note = f"Of the {len(kept)} channels that the greedy clique would keep, {escape(by)} keeps {agreement:.0%}."
    return f'<figure class="pair"><figcaption>{escape(name)}</figcaption>{images}<p>{note}</p></figure>'


def draw_matrix(matrix: np.ndarray, stays: np.ndarray | None) -> Image.Image:
    """Draws a matrix of values in [0, 1].

    Args:
        matrix: (n, n).
        stays: (n,) of bool, True for kept channels; drawn as a strip at the left and the top. None: no strip.
    """
    from matplotlib import colormaps

    matrix, marks = _shrink(np.clip(np.nan_to_num(matrix), 0, 1)), stays
    pixels = (colormaps["viridis"](matrix)[..., :3] * 255).astype(np.uint8)
    scale = max(1, SIDE // max(1, len(pixels)))
    pixels = pixels.repeat(scale, 0).repeat(scale, 1)
    if marks is None:
        return Image.fromarray(pixels)
    width, wide = len(pixels), max(4, len(pixels) // 24)
    strip = np.where(marks[:, None], KEPT, GONE).astype(np.uint8)
    strip = strip[np.arange(width) * len(marks) // width]
    framed = np.full((width + wide, width + wide, 3), 255, np.uint8)
    framed[wide:, wide:] = pixels
    framed[wide:, :wide], framed[:wide, wide:] = strip[:, None], strip[None]
    return Image.fromarray(framed)


def _shrink(matrix: np.ndarray) -> np.ndarray:
    """Averages a matrix in blocks, so that its side is at most SIDE."""
    size = len(matrix)
    block = -(-size // SIDE)
    if block <= 1:
        return matrix
    starts = np.arange(0, size, block)
    counts = np.diff([*starts, size])
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, 0), starts, 1)
    return sums / counts[:, None] / counts


def _mean(matrix: np.ndarray) -> float:
    """The mean of the elements off the diagonal."""
    size = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / max(1, size * (size - 1)))


@functools.lru_cache(maxsize=256)
def _picture(path: str, _changed: int) -> str:
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            if image.width > WIDEST:
                image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
            return _data(image, "WEBP", quality=QUALITY)
    except OSError:
        return ""


def _data(image: Image.Image, kind: str, **options: int) -> str:
    """Encodes an image as a data URL."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
