"""How much of the same space two channels' feature maps fill: the edge weights of the clique, and their average.

Section "Spatial-aware redundancy" of Wu et al., Structural Pruning via Spatial-aware Information Redundancy for
Semantic Segmentation, AAAI 2025. Each map, taken after the normalisation layer and before the activation, is divided by
its norm over the positions; the redundancy of two channels is the inner product of their maps, averaged over images and
over training iterations. The edge term is that of DCFP (Wang et al., 2024), which the reference code adds to the score.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from .sobel import CHUNK_BYTES, as_maps, edge_strength, map_edges, precision

__all__ = ["RedundancyAverage", "edge_strength", "edge_weights", "similarity"]

_EPS = 1e-5  # added to each norm, as the paper does
_GAIN_LIMIT = 1e4  # the average's scale is put back to 1 above this


@torch.no_grad()
def similarity(features: torch.Tensor, normalize: str = "l1", pooled: bool = False, stride: int = 1) -> torch.Tensor:
    """The spatial similarity of each pair of channels, averaged over the images.

    It is one matrix product for each chunk of positions, of which only the blocks on and above the diagonal are
    computed; features in either memory format are read where they lie. Autocast is off inside.

    Args:
        features: `(N, C, H, W)`, `(N, C, L)` or `(N, C)`, in any floating-point type.
        normalize: "l1" (the paper) or "l2" (cosine): the norm over positions that each map is divided by, plus 1e-5.
        pooled: an ablation: the mean over positions in place of the map, the images of the batch being the positions.
        stride: takes the products at each stride-th row and column only (but at 4 of each at least) and the norms over
            the whole map: an unbiased estimate, for little more than 1/stride^2 of the cost.

    Returns:
        `(C, C)` float32 (float64 of float64 features) on the features' device; not finite where a feature is not.

    Raises:
        ValueError: features of another shape or type, without images or positions, or an unknown `normalize`.
    """
    x = as_maps(features, pooled)
    result = _empty_sums(x)["matrix"]
    _accumulate(result, x, normalize, 1 / len(x), stride, 0)
    return _mirror(result)


def edge_weights(matrix: torch.Tensor, self_similarity: bool = False) -> torch.Tensor:
    """Edge weights of the clique, `-|S|`: the less redundant a pair, the greater.

    Args:
        matrix: `(C, C)` similarities.
        self_similarity: keep the diagonal (the reference's code counts it in its sums, the paper does not); else 0.
    """
    weights = matrix.abs().neg_()
    return weights if self_similarity else weights.fill_diagonal_(0)


class RedundancyAverage:
    """The similarity matrix of one layer, averaged over the images of an iteration and exponentially over iterations.

    Each image weighs `ema ** (iterations since)`, and the sum is divided by that of the weights: the paper's moving
    average, its bias corrected, where all batches are of one size, and a mean over images where they are not. Products
    are added to the sum where it lies, whose scale grows instead of its content shrinking: an iteration costs one pass
    over it. Images with a feature that is not finite count for nothing, without a device having to wait for it.

    Args:
        ema: the decay from one iteration to the next, alpha in the paper, in [0, 1).
        edges: also average `edge_strength`.
        normalize, pooled, stride: as in `similarity`; the rows and columns looked at change with each iteration.

    Attributes:
        steps: iterations closed so far that had images.

    Example:
        >>> average = RedundancyAverage(ema=0.99)
        >>> for _ in range(3):
        ...     average.update(torch.randn(2, 8, 16, 16))
        ...     average.step()
        >>> average.matrix().shape
        torch.Size([8, 8])
    """

    def __init__(
        self,
        ema: float = 0.99,
        edges: bool = False,
        normalize: str = "l1",
        pooled: bool = False,
        stride: int = 1,
    ):
        if not 0 <= ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {ema}")
        _check_options(normalize, stride)
        self.ema, self.edges, self.normalize, self.pooled, self.stride = ema, edges, normalize, pooled, stride
        self.steps = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._gain = 1.0  # the weight of an image seen now
        self._open = False  # whether this iteration has images

    @torch.no_grad()
    def update(self, features: torch.Tensor) -> None:
        """Adds features, as of `similarity`, to the iteration; a shared layer may do so at each of its sizes.

        Raises:
            ValueError: as `similarity`, or features with another number of channels than before.
        """
        x = as_maps(features, self.pooled)
        self._prepare(x)
        finite = torch.ones(len(x), dtype=torch.bool, device=x.device)
        _accumulate(self._sums["matrix"], x, self.normalize, self._gain, self.stride, self.steps, finite)
        if self.edges:
            edges = map_edges(as_maps(features)).nan_to_num_(0, 0, 0)
            edges = edges.mean(0, keepdim=True) if self.pooled else edges
            self._sums["edge"].add_(edges.mul_(finite[:, None]).sum(0), alpha=self._gain)
        count = finite.sum()
        self._sums["weight"].add_(count, alpha=self._gain)
        self._sums["skipped"].add_(len(x) - count)

    def step(self) -> None:
        """Closes the iteration. One without images changes nothing."""
        self.steps += self._open
        self._open = False

    def matrix(self) -> torch.Tensor:
        """The average so far, `(C, C)`, with the open iteration if there is one.

        Raises:
            ValueError: there were no images yet, or none whose features were finite.
        """
        return _mirror(self._average("matrix"))

    def edge(self) -> torch.Tensor:
        """The average edge strength so far, `(C,)`; zeros without `edges`.

        Raises:
            ValueError: as `matrix`.
        """
        return self._average("edge")

    @property
    def images(self) -> bool:
        """Whether there is an average: whether any image had finite features only."""
        return bool(self._sums) and bool(self._sums["weight"])

    @property
    def skipped(self) -> int:
        """How many images of this process had a feature that was not finite."""
        return int(self._sums["skipped"]) if self._sums else 0

    @torch.no_grad()
    def reduce(self) -> None:
        """Makes the average the same in all processes of `torch.distributed`: that of the images of them all.

        To be called by all of them between iterations; more iterations and another call may follow. Without a process
        group it does nothing.
        """
        if not dist.is_available() or not dist.is_initialized():
            return
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        sizes = torch.tensor([len(self._sums["edge"]) if self._sums else 0, self.steps], device=device)
        dist.all_reduce(sizes, dist.ReduceOp.MAX)
        channels, self.steps = sizes.tolist()
        if not channels:
            return
        if not self._sums:
            self._sums = _empty_sums(torch.empty(0, channels, device=device))
        self._rescale()
        for name in ("matrix", "edge", "weight"):
            # The mean, not the sum: so the processes' shares stay in proportion in what comes later.
            dist.all_reduce(self._sums[name])
            self._sums[name].div_(dist.get_world_size())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers only, to be taken between iterations; the options are not in it."""
        return {"steps": self.steps, "gain": self._gain, **self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; the tensors are copied, and follow the next features to their device.

        Raises:
            ValueError: the state is not one of this class.
        """
        sums = {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        if not {"steps", "gain"} <= set(state) or set(sums) not in (set(), set(_empty_sums(torch.empty(0, 0)))):
            raise ValueError(f"not the state of a RedundancyAverage: it has {', '.join(state) or 'nothing'}")
        self.steps, self._gain, self._sums, self._open = state["steps"], state["gain"], sums, False

    def _prepare(self, x: torch.Tensor) -> None:
        """Makes the sums, or moves them to x's device, and lets what was seen before this iteration decay."""
        if not self._sums:
            self._sums = _empty_sums(x)
        seen = self._sums["edge"]
        if len(seen) != x.shape[1]:
            raise ValueError(f"this average is of {len(seen)} channels, got features of {x.shape[1]}")
        if seen.device != x.device:
            self._sums = {name: tensor.to(x.device) for name, tensor in self._sums.items()}
        if self._open:
            return
        self._open = True
        if self.steps:
            self._gain = self._gain / self.ema if self.ema else float("inf")
            if self._gain > _GAIN_LIMIT:
                self._rescale()

    def _rescale(self) -> None:
        for name in ("matrix", "edge", "weight"):
            self._sums[name].mul_(1 / self._gain)
        self._gain = 1.0

    def _average(self, name: str) -> torch.Tensor:
        if not self.images:
            raise ValueError(f"no average yet: no images with finite features ({self.skipped} without)")
        return self._sums[name] / self._sums["weight"]


def _empty_sums(x: torch.Tensor) -> dict[str, torch.Tensor]:
    channels, kind = x.shape[1], {"device": x.device, "dtype": precision(x)}
    return {
        "matrix": torch.zeros(channels, channels, **kind),  # above the diagonal and on it
        "edge": torch.zeros(channels, **kind),
        "weight": torch.zeros((), **kind),  # of all images
        "skipped": torch.zeros((), dtype=torch.int64, device=x.device),
    }


def _check_options(normalize: str, stride: int) -> None:
    if normalize not in ("l1", "l2"):
        raise ValueError(f"normalize must be l1 or l2, got {normalize!r}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")


def _lattice(x: torch.Tensor, stride: int, turn: int) -> torch.Tensor:
    """Each stride-th row and column, at least 4 of each where there are, from another corner each turn: a view."""
    down, across = (max(1, min(stride, size // 4)) for size in x.shape[2:])
    return x[:, :, turn % down :: down, turn // down % across :: across]


def _accumulate(
    out: torch.Tensor,
    x: torch.Tensor,
    normalize: str,
    gain: float,
    stride: int,
    turn: int,
    finite: torch.Tensor | None = None,
) -> None:
    """Adds `gain` times the similarity of each image to the blocks of `out` on and above the diagonal.

    With `finite`, `(N,)`, images that are not finite are left out and set to False there.
    """
    _check_options(normalize, stride)
    # Positions before channels, as they lie in channels_last memory, or channels before images and positions.
    order, per_image = ((0, 2, 3, 1), (1, 2)) if x.stride(1) == 1 else ((1, 0, 2, 3), (2, 3))
    seen = _lattice(x, stride, turn)
    positions, share = x.shape[2] * x.shape[3], seen[0, 0].numel() / x[0, 0].numel()
    cells = max(1, CHUNK_BYTES // (out.element_size() * x.shape[1]))
    at_once = max(1, cells // positions)
    # The one buffer of this call: allocated anew for each chunk, it would be several in a fragmented heap.
    buffer = torch.empty(min(cells, len(x) * positions) * x.shape[1], dtype=out.dtype, device=x.device)
    start = 0
    for part, seen_part in zip(x.split(at_once), seen.split(at_once), strict=True):
        # Magnitudes in place, then a plain sum: many times as fast as `vector_norm` over these dimensions on a CPU.
        norm = 0
        for tile in _tiles(part, order, cells):
            chunk = buffer[: tile.numel()].view(tile.shape).copy_(tile)
            norm = norm + (chunk.abs_() if normalize == "l1" else chunk.square_()).sum(per_image, keepdim=True)
        norm = norm.sqrt_() if normalize == "l2" else norm
        bad = None
        if finite is not None:
            # (images, 1, 1, 1) or (1, images, 1, 1)
            good = norm.isfinite().all(order.index(1), keepdim=True)
            finite[start : start + len(part)] = good.flatten()
            if x.device.type != "cpu" or not good.all():
                bad = ~good
        start += len(part)
        scale = norm.add_(_EPS).reciprocal_()
        for tile in _tiles(seen_part, order, cells):
            chunk = buffer[: tile.numel()].view(tile.shape).copy_(tile).mul_(scale)
            if bad is not None:
                chunk.masked_fill_(bad, 0)
            _add_products(out, chunk.flatten(0, 2).t() if order[-1] == 1 else chunk.flatten(1), gain / share)


def _tiles(x: torch.Tensor, order: tuple[int, ...], cells: int) -> list[torch.Tensor]:
    """Parts of the positions of each image, at most `cells` of an image in each, with dimensions in that order."""
    images, channels, height, width = x.shape
    if x.stride(2) == width * x.stride(3):
        x = x.view(images, channels, 1, height * width)
        width *= height
    return [tile.permute(order) for rows in x.split(max(1, cells // width), 2) for tile in rows.split(cells, 3)]


def _add_products(out: torch.Tensor, rows: torch.Tensor, gain: float) -> None:
    """Adds `gain * rows @ rows.T` to strips of `out` from the diagonal to the right: about half of the work."""
    strip = max(128, -(-len(out) // 8))
    with torch.autocast(out.device.type, enabled=False):
        for i in range(0, len(out), strip):
            out[i : i + strip, i:].addmm_(rows[i : i + strip], rows[i:].t(), alpha=gain)


def _mirror(matrix: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix of which one has the part above the diagonal."""
    upper = matrix.triu()
    return upper + upper.triu(1).t()
