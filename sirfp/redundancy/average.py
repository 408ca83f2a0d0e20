"""The spatial redundancy of each pair of channels, averaged over training: the edge weights of the clique.

Section "Spatial-aware redundancy" of Wu et al., Structural Pruning via Spatial-aware Information Redundancy for
Semantic Segmentation, AAAI 2025. Each feature map is read after the normalisation layer and before the activation, and
divided by its norm over the positions. The redundancy of two channels is the inner product of their maps, averaged over
images and over training iterations. The edge term is that of DCFP (Wang et al., 2024), which the reference code adds to
the score.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from .products import add_products, check_options, magnitudes, mirror, packed, sampled, tiles
from .sobel import CHUNK_BYTES, accumulation_dtype, as_maps, edge_strength, map_edges

__all__ = ["RedundancyAverage", "edge_strength", "edge_weights", "similarity"]

_EPS = 1e-5  # added to each norm, as the paper does
_GAIN_LIMIT = 1e4  # the sums are rescaled when their factor exceeds this: far from float32's limits, rarely reached
CACHED_BYTES = 1 << 20
"""Maximum size in bytes of the magnitudes that are computed at once on a CPU, so that its cache holds them until they
are added up."""


@torch.no_grad()
def similarity(
    features: torch.Tensor,
    normalize: str = "l1",
    pooled: bool = False,
    stride: int = 1,
    per_position: bool = False,
    turn: int = 0,
) -> torch.Tensor:
    """Computes the spatial similarity of each pair of channels, averaged over the images.

    Computes only the blocks on and above the diagonal, by one matrix product for each chunk of positions. Features may
    be contiguous or channels-last; neither is copied as a whole. Autocast is disabled inside.

    Args:
        features: `(N, C, H, W)`, `(N, C, D, H, W)`, `(N, C, L)` or `(N, C)`, in any floating-point type.
        normalize: "l1" (the paper) or "l2" (cosine): each map is divided by this norm over positions, plus 1e-5.
        pooled: an ablation: each map is replaced by its mean, and the images of the batch serve as positions.
        stride: computes the products only at every stride-th row and column (but at least 4 of each), and the norms
            over the whole map, for little more than 1/stride^2 of the cost. The rows and columns change from image to
            image: stride^2 consecutive images use each position once, so the estimate over that many images has no
            bias. In a single image a border row or column is used too often, or never.
        per_position: multiplies the products by the number of positions of a map. Products of L1-normalised maps of P
            positions are about 1 / P; with the factor, maps of different sizes are comparable.
        turn: sets the rows and columns of the first image if `stride` is above 1.

    Returns:
        `(C, C)` float32 (float64 for float64 features) on the features' device; NaN or infinite in the rows and columns
        of channels with a NaN or infinite feature.

    Raises:
        ValueError: features have another shape or type, no images or no positions, or `normalize` is unknown.
    """
    x = as_maps(features, pooled)
    result = _empty_sums(x)["matrix"]
    weights = _accumulate(result, x, normalize, x.shape[2] * x.shape[3] if per_position else 1, stride, turn)
    return mirror(result / weights.sum())


def edge_weights(matrix: torch.Tensor, self_similarity: bool = False) -> torch.Tensor:
    """Returns the edge weights of the clique, `-|S|`: the less redundant a pair, the greater its weight.

    Args:
        matrix: similarities, `(C, C)`.
        self_similarity: True keeps the diagonal, which the reference code adds to its sums and the paper does not.
            False sets it to 0.
    """
    weights = matrix.abs().neg_()
    return weights if self_similarity else weights.fill_diagonal_(0)


class RedundancyAverage:
    """The similarity matrix of one layer, averaged over the images of an iteration and exponentially over iterations.

    An image has the weight `ema ** k` after k iterations, and the weighted sum is divided by the sum of the weights.
    With batches of equal size this is the paper's moving average with its bias corrected. An iteration without images
    leaves the average as it is and counts as one of the k: other processes may have had images in it. New products are
    added with a growing factor, instead of multiplying the sums by `ema`, so an iteration passes over the sums only
    once. Images with a NaN or infinite feature are skipped, without making the device wait for the host.

    Args:
        ema: the decay from one iteration to the next, alpha in the paper, in [0, 1).
        edges: True to average `edge_strength` too.
        normalize, pooled, stride: see `similarity`. The rows and columns that `stride` selects change with each image
            of a call and with each iteration.
        per_position: see `similarity`. The factor is that of each image's own map: a layer that runs on several maps,
            such as a detector's head on a pyramid, has maps of several sizes.

    Attributes:
        steps: number of closed iterations that had images.

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
        per_position: bool = False,
    ):
        if not 0 <= ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {ema}")
        check_options(normalize, stride)
        self.ema, self.edges, self.normalize, self.pooled, self.stride = ema, edges, normalize, pooled, stride
        self.per_position = per_position
        self.steps = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._gain = 1.0  # the weight of an image of this iteration
        self._open = False  # True once this iteration has images
        self._idle = 0  # iterations closed without images since the last one that had some

    @torch.no_grad()
    def update(self, features: torch.Tensor) -> None:
        """Adds the features of one call to the present iteration.

        A layer that runs on several maps, such as a detector's head, adds each map. The maps may differ in size.

        Args:
            features: see `similarity`.

        Raises:
            ValueError: see `similarity`; or the number of channels differs from earlier calls.
        """
        x = as_maps(features, self.pooled)
        self._prepare(x)
        gain = self._gain * (x.shape[2] * x.shape[3] if self.per_position else 1)
        sums = self._sums
        weights = _accumulate(sums["matrix"], x, self.normalize, gain, self.stride, self.steps, sums["skipped"])
        if self.edges:
            edges = map_edges(features.detach()).nan_to_num_(0, 0, 0)
            edges = edges.mean(0, keepdim=True) if self.pooled else edges
            sums["edge"].add_(edges.mul_(weights[:, None]).sum(0), alpha=self._gain)
        sums["weight"].add_(weights.sum(), alpha=self._gain)

    def step(self) -> None:
        """Closes the iteration. If it had no images, the average stays, and earlier images are one iteration older."""
        self.steps += self._open
        self._idle = 0 if self._open else self._idle + 1
        self._open = False

    def matrix(self) -> torch.Tensor:
        """Returns the average so far, `(C, C)`, including the open iteration if there is one.

        Raises:
            ValueError: no image so far had only finite features.
        """
        return mirror(self._average("matrix"))

    def edge(self) -> torch.Tensor:
        """Returns the average edge strength so far, `(C,)`; zeros if `edges` is False.

        Raises:
            ValueError: see `matrix`.
        """
        return self._average("edge")

    @property
    def images(self) -> bool:
        """True if there is an average: at least one image had only finite features."""
        return bool(self._sums) and bool(self._sums["weight"])

    @property
    def skipped(self) -> int:
        """Number of images of this process that were skipped because a feature was NaN or infinite."""
        return int(self._sums["skipped"]) if self._sums else 0

    @torch.no_grad()
    def reduce(self) -> None:
        """Replaces the average of every process of `torch.distributed` by the average over the images of all processes.

        All processes must call it, between iterations; more iterations and calls may follow. Without a process group it
        does nothing.
        """
        if not dist.is_available() or not dist.is_initialized():
            return
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        never = torch.iinfo(torch.int64).max
        idle = self._idle if self._sums else never
        sizes = torch.tensor([len(self._sums["edge"]) if self._sums else 0, self.steps, -idle], device=device)
        dist.all_reduce(sizes, dist.ReduceOp.MAX)
        channels, self.steps, latest = sizes.tolist()
        if not channels:
            return
        if not self._sums:
            self._sums, idle = _empty_sums(torch.empty(0, channels, device=device)), -latest
        # Images of a process that had none in the last iterations are older than those of the others.
        self._rescale(self.ema ** (idle + latest))
        self._idle = -latest
        for name in ("matrix", "edge", "weight"):
            # The mean, not the sum: a sum would give these iterations world-size times the weight of later ones.
            dist.all_reduce(self._sums[name])
            self._sums[name].div_(dist.get_world_size())

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums as tensors and plain numbers, without the options. Call it between iterations."""
        plain = {"steps": self.steps, "gain": self._gain, "idle": self._idle, "per_position": self.per_position}
        return plain | self._sums

    def load_state_dict(self, state: dict[str, Any], positions: int = 1) -> None:
        """Restores a state. The tensors are copied; the next `update` moves them to the device of its features.

        Args:
            state: as `state_dict` returned it.
            positions: the number of positions of the layer's maps. Version 0.1.0 saved products without the factor of
                `per_position`; they are multiplied by it here.

        Raises:
            ValueError: `state` is not the state of a `RedundancyAverage`.
        """
        sums = {name: tensor.clone() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
        if not {"steps", "gain"} <= set(state) or set(sums) not in (set(), set(_empty_sums(torch.empty(0, 0)))):
            raise ValueError(f"not the state of a RedundancyAverage: it has {', '.join(state) or 'nothing'}")
        self.steps, self._gain, self._sums, self._open = state["steps"], state["gain"], sums, False
        self._idle = state.get("idle", 0)
        if sums and self.per_position and "per_position" not in state:
            sums["matrix"].mul_(positions)

    def _prepare(self, x: torch.Tensor) -> None:
        """Creates the sums or moves them to x's device, and opens the iteration, which decays earlier weights."""
        if not self._sums:
            self._sums = _empty_sums(x)
        seen = self._sums["edge"]
        if len(seen) != x.shape[1]:
            raise ValueError(f"the average has {len(seen)} channels, got features with {x.shape[1]}")
        if seen.device != x.device:
            self._sums = {name: tensor.to(x.device) for name, tensor in self._sums.items()}
        if self._open:
            return
        self._open = True
        if self.steps:
            decay = self.ema ** (1 + self._idle)
            if self._gain > _GAIN_LIMIT * decay:
                self._rescale(decay)
            else:
                self._gain /= decay

    def _rescale(self, decay: float = 1.0) -> None:
        """Multiplies the weights by `decay` and divides them by the gain, which becomes 1."""
        for name in ("matrix", "edge", "weight"):
            self._sums[name].mul_(decay / self._gain)
        self._gain = 1.0

    def _average(self, name: str) -> torch.Tensor:
        if not self.images:
            raise ValueError(f"no average yet: no image had only finite features ({self.skipped} skipped)")
        return self._sums[name] / self._sums["weight"]


def _empty_sums(x: torch.Tensor) -> dict[str, torch.Tensor]:
    channels, dtype, device = x.shape[1], accumulation_dtype(x), x.device
    return {
        "matrix": torch.zeros(channels, channels, dtype=dtype, device=device),  # on and above the diagonal
        "edge": torch.zeros(channels, dtype=dtype, device=device),
        "weight": torch.zeros((), dtype=dtype, device=device),  # sum of the images' weights
        "skipped": torch.zeros((), dtype=torch.int64, device=device),
    }


def _accumulate(
    out: torch.Tensor,
    x: torch.Tensor,
    normalize: str,
    gain: float,
    stride: int,
    turn: int,
    skipped: torch.Tensor | None = None,
) -> torch.Tensor:
    """Adds `gain` times the similarity of each image to the blocks of `out` on and above the diagonal.

    Args:
        out: the sum, (C, C), changed in place.
        x: features, (N, C, H, W).
        normalize: see `similarity`.
        gain: the factor.
        stride: see `similarity`.
        turn: sets the rows and columns of the first image that `stride` selects.
        skipped: images with a NaN or infinite feature are skipped and their number is added here, in place; None to
            use all images.

    Returns:
        The weight of each image, (N,): 0 if skipped, else about 1, in proportion to the positions in its sample.
    """
    check_options(normalize, stride)
    # The order of dimensions in memory: positions before channels for channels-last, else channels first.
    last = x.stride(1) == 1
    order, per_image = ((0, 2, 3, 1), (1, 2)) if last else ((1, 0, 2, 3), (2, 3))
    positions = x.shape[2] * x.shape[3]
    cells = max(1, CHUNK_BYTES // (out.element_size() * x.shape[1]))
    at_once = max(1, cells // positions)
    cached = min(cells, max(1, CACHED_BYTES // (out.element_size() * x.shape[1]))) if x.device.type == "cpu" else cells
    weights = torch.ones(len(x), dtype=out.dtype, device=x.device)
    # One buffer for all chunks: a buffer for each would fragment the heap, and several would exist at the same time.
    buffer = torch.empty(min(cells, len(x) * positions) * x.shape[1], dtype=out.dtype, device=x.device)
    for start in range(0, len(x), at_once):
        part = x[start : start + at_once]
        # Magnitudes in place, then a plain sum: many times as fast as `vector_norm` over these dimensions on a CPU.
        norms = []
        for images in part.split(max(1, cached // positions)):
            first, *more = tiles(images, order, cached)
            norms.append(magnitudes(first, buffer, normalize).sum(per_image, keepdim=True))
            for tile in more:
                norms[-1].add_(magnitudes(tile, buffer, normalize).sum(per_image, keepdim=True))
        norm = norms[0] if len(norms) == 1 else torch.cat(norms, order.index(0))
        norm = norm.sqrt_() if normalize == "l2" else norm
        bad, own_weights = None, weights[start : start + len(part)]
        if skipped is not None and (x.device.type != "cpu" or not float(norm.amax()) < torch.inf):  # NaN too
            bad = ~(norm.amax(order.index(1), keepdim=True) < torch.inf)
            own_weights.copy_(~bad.flatten())
            skipped.add_(bad.sum())
        scale = norm.add_(_EPS).reciprocal_()
        pieces, times = [], 1
        for which, seen, times in sampled(part, stride, turn, start):  # `times` is the same for all images
            own = which if last else (slice(None), which)
            own_weights[which].mul_(times * seen.shape[2] * seen.shape[3] / positions)
            pieces += [(tile, scale[own], None if bad is None else bad[own]) for tile in tiles(seen, order, cells)]
        for together in [pieces] if len(part) > 1 else [[piece] for piece in pieces]:
            add_products(out, packed(buffer, together, last), gain * times)
    return weights
