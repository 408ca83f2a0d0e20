"""Times EHGP for every layer of DeepLabV3-ResNet-50 against a new sum and sort of the matrix for each removal.

    python benchmarks/scoring.py [--json] [--threads 2] [--repeats 5]

The matrices are similarities of random features with the widths of the network's 62 norm layers. Bounds: all layers in
under 0.2 s and at least 100 times as fast as the baseline; 4096 channels in under 1 s. Times are medians; the baseline
runs once for each width. Exit code 1 if a bound is not met.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch
from subjects import machine

from sirfp import clique
from sirfp.redundancy import edge_weights, similarity


def deeplab_widths() -> list[int]:
    """The widths of the 62 norm layers: of the stem, 16 bottlenecks, 4 shortcuts and the heads."""
    widths = [64]
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        widths += [4 * width] + [width, width, 4 * width] * blocks
    # ASPP: four branches, the pooled one, their projection; the head's convolution; the auxiliary head's two.
    return widths + [256] * 7 + [256] * 2


def resum_and_resort(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The naive algorithm: for each removal, sums the remaining rows and sorts the sums."""
    left, order, score = torch.arange(len(weights)), [], []
    weights = weights.clone().fill_diagonal_(0)
    while len(left):
        sums, index = weights.sum(1).sort(stable=True)
        order.append(left[index[0]])
        score.append(sums[0])
        remain = torch.ones(len(left), dtype=torch.bool)
        remain[index[0]] = False
        left, weights = left[remain], weights[remain][:, remain]
    return torch.stack(order), torch.stack(score)


def matrix(channels: int, seed: int = 0) -> torch.Tensor:
    features = torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(seed))
    return edge_weights(similarity(features))


def seconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    widths = deeplab_widths()
    layers = [matrix(width, seed) for seed, width in enumerate(widths)]
    ours = seconds(lambda: [clique.greedy(layer) for layer in layers], args.repeats)
    rows, baseline = [], 0.0
    for width, count in sorted(Counter(widths).items()):
        weights = matrix(width)
        start = time.perf_counter()
        order, _ = resum_and_resort(weights.double())
        slow = time.perf_counter() - start
        fast = seconds(lambda weights=weights: clique.greedy(weights), args.repeats)
        # The last two channels tie; their order depends on the baseline's rounding.
        same = torch.equal(order[:-2], clique.greedy(weights)[0][:-2])
        rows.append({"channels": width, "layers": count, "greedy_s": fast, "baseline_s": slow, "same_order": same})
        baseline += count * slow
    wide = matrix(4096)
    large = seconds(lambda: clique.greedy(wide), max(1, args.repeats // 2))
    result = {
        "layers": len(widths),
        "greedy_s": ours,
        "baseline_s": baseline,
        "ratio": baseline / ours,
        "greedy_4096_s": large,
        "within_bounds": ours < 0.2 and baseline / ours >= 100 and large < 1,
        "widths": rows,
        "machine": machine(),
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{'channels':>8} {'layers':>6} {'greedy':>10} {'baseline':>10} {'ratio':>7}  same order")
        for row in rows:
            print(
                f"{row['channels']:>8} {row['layers']:>6} {row['greedy_s'] * 1e3:>7.2f} ms "
                f"{row['baseline_s'] * 1e3:>7.0f} ms {row['baseline_s'] / row['greedy_s']:>7.0f}  {row['same_order']}"
            )
        print(f"all {len(widths)} layers: {ours:.3f} s (bound 0.2), baseline {baseline:.1f} s")
        print(f"ratio: {result['ratio']:.0f} (bound 100); 4096 channels: {large:.3f} s (bound 1)")
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 0 if result["within_bounds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
