"""The parts of an accumulation of products: options, the positions used, tiles, magnitudes, the product."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def check_options(normalize: str, stride: int) -> None:
    """Raises ValueError unless the options of `sirfp.redundancy.similarity` are allowed."""
    if normalize not in ("l1", "l2"):
        raise ValueError(f"normalize must be l1 or l2, got {normalize!r}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")


def sampled(x: torch.Tensor, stride: int, turn: int, start: int = 0) -> Iterator[tuple[slice, torch.Tensor, int]]:
    """Selects every stride-th row and column of each image, but at least 4 of each if the map has 4.

    The images of a call start at `stride` places in turns, so that a batch uses each row and each column. With a single
    place all images would show a border too often, or never. After `stride^2` turns an image used each position once.

    Args:
        x: features, (N, C, H, W).
        stride: the distance of the rows and of the columns.
        turn: sets where the rows and columns of the call's first image start.
        start: the number of images of the call before x.

    Yields:
        (images, sample, times): a slice of the images that share their rows and columns, the view of their features,
        and the number of positions that one of the sample stands for.
    """
    down, across = (max(1, min(stride, size // 4)) for size in x.shape[2:])
    places = max(down, across)
    for first in range(min(len(x), places)):
        which, image = slice(first, None, places), start + first
        row, column = (turn + image) % down, (turn // down + turn % down + image) % across
        yield which, x[which, :, row::down, column::across], down * across


def tiles(x: torch.Tensor, order: tuple[int, ...], cells: int) -> list[torch.Tensor]:
    """Splits an image's positions into tiles of at most `cells` positions, and permutes the dimensions of each tile."""
    images, channels, height, width = x.shape
    if height * width <= cells:
        return [x.permute(order)]
    if x.stride(2) == width * x.stride(3):
        x = x.view(images, channels, 1, height * width)
        width *= height
    return [tile.permute(order) for rows in x.split(max(1, cells // width), 2) for tile in rows.split(cells, 3)]


def magnitudes(tile: torch.Tensor, buffer: torch.Tensor, normalize: str) -> torch.Tensor:
    """Writes the absolute values ("l1") or the squares ("l2") of a tile into a buffer that has room for them.

    Returns:
        They, in the tile's shape, a view of the buffer.
    """
    chunk = buffer[: tile.numel()].view(tile.shape)
    if tile.dtype != chunk.dtype:
        tile = chunk.copy_(tile)
    return torch.abs(tile, out=chunk) if normalize == "l1" else torch.mul(tile, tile, out=chunk)


def packed(
    buffer: torch.Tensor, pieces: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]], last: bool
) -> torch.Tensor:
    """Writes scaled tiles side by side into a buffer, for one matrix product of all.

    Args:
        buffer: a vector that has room for all tiles.
        pieces: (tile, scale, skipped) of each: the tile, with its dimensions permuted; the factors of its images and
            channels; and True for its images that are set to 0, or None. Both are broadcast over the positions.
        last: True if the tiles are (n, h, w, C), False if they are (C, n, h, w).

    Returns:
        The channels, (C, positions), a view of the buffer.
    """
    channels = pieces[0][0].shape[-1 if last else 0]
    sizes = [tile.numel() // channels for tile, _, _ in pieces]
    rows = buffer[: sum(sizes) * channels].view((-1, channels) if last else (channels, -1))
    for place, (tile, scale, skipped) in zip(rows.split(sizes, 0 if last else 1), pieces, strict=True):
        chunk = place.view(tile.shape)
        if tile.dtype == chunk.dtype:
            torch.mul(tile, scale, out=chunk)
        else:  # a product of two types would convert the whole tile outside the buffer first
            chunk.copy_(tile).mul_(scale)
        if skipped is not None:
            chunk.masked_fill_(skipped, 0)
    return rows.t() if last else rows


def add_products(out: torch.Tensor, rows: torch.Tensor, gain: float) -> None:
    """Adds `gain * rows @ rows.T` to `out`, only on and above the diagonal, in strips: about half of the work."""
    strip = max(128, -(-len(out) // 8))
    with torch.autocast(out.device.type, enabled=False):
        for i in range(0, len(out), strip):
            out[i : i + strip, i:].addmm_(rows[i : i + strip], rows[i:].t(), alpha=gain)


def mirror(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the symmetric matrix with the given part on and above the diagonal."""
    upper = matrix.triu()
    return upper + upper.triu(1).t()
