"""How edged a channel's feature maps are: the term of DCFP that SIRFP's reference code adds to a channel's score.

DCFP is Wang et al., 2024; the code is that of Wu et al., AAAI 2025. Beside it stands what features this floor takes,
and in what precision it sums.
"""

from __future__ import annotations

import torch

CHUNK_BYTES = 32 << 20
"""The most that one call holds besides its features and its result, in bytes; at least one position of one image
(`similarity`) or one map (`edge_strength`)."""


@torch.no_grad()
def edge_strength(features: torch.Tensor) -> torch.Tensor:
    """How edged each channel's maps are: the standard deviation over positions of the Sobel gradient's magnitude.

    The gradient is taken where the 3 x 3 filters fit, so a border adds no edge; the deviation is the population's.
    Maps of less than 3 x 3 have no edges: 0.

    Args:
        features: `(N, C, H, W)`.

    Returns:
        `(C,)` float32 (float64 of float64 features), the mean over the images.

    Raises:
        ValueError: features of another shape or type, or without images or positions.
    """
    return map_edges(as_maps(features)).mean(0)


def map_edges(x: torch.Tensor) -> torch.Tensor:
    """The deviation of the Sobel gradient's magnitude over the positions of each map, `(N, C)`."""
    images, channels, height, width = x.shape
    if height < 3 or width < 3:
        return torch.zeros(images, channels, dtype=precision(x), device=x.device)
    maps = max(1, CHUNK_BYTES // (6 * precision(x).itemsize * height * width))  # 6: what _sobel holds at once
    rows = []
    for part in x.split(max(1, maps // channels)):
        rows.append(torch.cat([_sobel(some).std((2, 3), correction=0) for some in part.split(maps, 1)], 1))
    return torch.cat(rows)


def _sobel(x: torch.Tensor) -> torch.Tensor:
    """The magnitude of the Sobel gradient where the filters fit, `(N, C, H - 2, W - 2)`."""
    x = x.to(precision(x))
    down = x[:, :, :-2].add(x[:, :, 1:-1], alpha=2).add_(x[:, :, 2:])
    horizontal = down[..., 2:] - down[..., :-2]
    across = x[..., :-2].add(x[..., 1:-1], alpha=2).add_(x[..., 2:])
    vertical = across[:, :, 2:] - across[:, :, :-2]
    return horizontal.square_().add_(vertical.square_()).sqrt_()


def as_maps(features: torch.Tensor, pooled: bool = False) -> torch.Tensor:
    """Features as `(N, C, H, W)`, checked; pooled ones as `(1, C, 1, N)`."""
    if features.ndim not in (2, 3, 4) or not features.is_floating_point():
        raise ValueError(
            f"features must be floating-point (N, C, H, W), (N, C, L) or (N, C), "
            f"got {features.dtype} of shape {tuple(features.shape)}"
        )
    if not features.numel():
        raise ValueError(f"features must have images, channels and positions, got shape {tuple(features.shape)}")
    x = features.detach()
    x = x[:, :, None] if x.ndim == 3 else x.reshape(*x.shape, *[1] * (4 - x.ndim))
    if pooled:
        x = x.mean((2, 3), dtype=precision(x)).t()[None, :, None]
    return x


def precision(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
