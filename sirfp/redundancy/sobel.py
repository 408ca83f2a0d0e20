"""The edge strength of a channel's feature maps: the term of DCFP that SIRFP's reference code adds to a score.

DCFP is Wang et al., 2024; the reference code is that of Wu et al., AAAI 2025. The check of the features' shape and the
accumulation dtype, which `average` uses too, are also defined here.
"""

from __future__ import annotations

import torch

CHUNK_BYTES = 32 << 20
"""Maximum memory of one call in bytes, besides its features and its result. Each chunk has at least one position of one
image (`similarity`) or one map (`edge_strength`), even if that takes more.

Chosen, not tuned: small compared with a layer's features in training, so that accumulation hardly raises the peak of
memory, and large enough for a few large matrix products instead of many small ones. `benchmarks/accumulation_kernel.py`
measures the time and the memory of an update."""


@torch.no_grad()
def edge_strength(features: torch.Tensor) -> torch.Tensor:
    """Computes each channel's edge strength: the standard deviation over positions of the Sobel gradient's magnitude.

    The gradient is computed only where the 3 x 3 filters fit, so the border adds no edge. The standard deviation is
    that of the population (divided by n). Maps smaller than 3 x 3 give 0. The slices of a volume along its depth are
    maps; its edge strength is their mean.

    Args:
        features: `(N, C, H, W)`, or `(N, C, D, H, W)` for volumes.

    Returns:
        `(C,)` float32 (float64 for float64 features), the mean over the images.

    Raises:
        ValueError: features have another shape or type, no images or no positions.
    """
    return map_edges(features.detach()).mean(0)


def map_edges(x: torch.Tensor) -> torch.Tensor:
    """Returns the standard deviation of the Sobel gradient's magnitude over the positions of each map, `(N, C)`.

    Args:
        x: features of any shape that `as_maps` takes. Of volumes the mean over the slices along the depth is returned.
    """
    if x.ndim > 4:
        slices = x.flatten(2, -3).unbind(2)
        return torch.stack([map_edges(one) for one in slices]).mean(0)
    x = as_maps(x)
    images, channels, height, width = x.shape
    if height < 3 or width < 3:
        return torch.zeros(images, channels, dtype=accumulation_dtype(x), device=x.device)
    per_map = 6 * accumulation_dtype(x).itemsize * height * width  # _sobel holds up to 6 copies of a map at a time
    maps = max(1, CHUNK_BYTES // per_map)
    rows = []
    for part in x.split(max(1, maps // channels)):
        rows.append(torch.cat([_sobel(some).std((2, 3), correction=0) for some in part.split(maps, 1)], 1))
    return torch.cat(rows)


def _sobel(x: torch.Tensor) -> torch.Tensor:
    """Returns the magnitude of the Sobel gradient where the filters fit, `(N, C, H - 2, W - 2)`."""
    x = x.to(accumulation_dtype(x))
    down = x[:, :, :-2].add(x[:, :, 1:-1], alpha=2).add_(x[:, :, 2:])
    horizontal = down[..., 2:] - down[..., :-2]
    across = x[..., :-2].add(x[..., 1:-1], alpha=2).add_(x[..., 2:])
    vertical = across[:, :, 2:] - across[:, :, :-2]
    return horizontal.square_().add_(vertical.square_()).sqrt_()


def as_maps(features: torch.Tensor, pooled: bool = False) -> torch.Tensor:
    """Checks features and returns them as maps, `(N, C, H, W)`.

    The slices of a volume lie below each other, `(N, C, D * H, W)`: a view if the features are contiguous, in either
    memory format. If `pooled` is True, returns the mean of each map, `(1, C, 1, N)`: the images serve as positions of
    one image.
    """
    if features.ndim < 2 or not features.is_floating_point():
        raise ValueError(
            f"features must be floating-point (N, C, H, W), (N, C, D, H, W), (N, C, L) or (N, C), "
            f"got {features.dtype} of shape {tuple(features.shape)}"
        )
    if not features.numel():
        raise ValueError(f"features must have images, channels and positions, got shape {tuple(features.shape)}")
    x = features.detach()
    if x.ndim > 4:
        x = x.flatten(2, -2)
    if x.ndim < 4:
        x = x[:, :, None] if x.ndim == 3 else x[:, :, None, None]
    if pooled:
        x = x.mean((2, 3), dtype=accumulation_dtype(x)).t()[None, :, None]
    return x


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """Returns the type for sums: float64 for float64 features, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
