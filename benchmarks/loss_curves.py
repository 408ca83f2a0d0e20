"""Times what decides widths and channels by default: loss curves, and the set-wise order of channels.

    python benchmarks/loss_curves.py [--json] [--threads 2] [--processor-time] [--usual-memory] [--images 32]
        [--models NAME ...]

Curves are measured at all levels of all groups, on random images, after refits on three times as many; a pruning
leaves out points that its budget does not need and adds some. Bounds, on two cores with 32 images: 60 s for
EfficientNet-Lite0 at 224 x 224, 90 s for DeepLabV3+ on it at 240 x 320; the order of all groups of
DeepLabV3-ResNet-50 in 5 s. `--models` selects the networks; only the order of the last one is timed. Exit code 1 if a
bound is not met. With --processor-time they are seconds of the processor, for comparisons on a busy machine; bounds are
by the clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from subjects import build, deeplab_v3_plus_lite0, images, machine
from torch import nn

from sirfp.budget.curves import measure_curves
from sirfp.budget.evidence import CURVES, Evidence, call_pixels
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.criteria.setwise import Setwise
from sirfp.network.channels_last import use_channels_last
from sirfp.network.divergence import divergence_for
from sirfp.network.kept_memory import kept_memory

T = TypeVar("T")
BOUNDS = {"lite0": 60.0, "deeplab-lite0": 90.0}
ORDER = 5.0


def subject(name: str, count: int) -> tuple[nn.Module, list[Any]]:
    """Returns a network and batches of random images."""
    if name == "lite0":
        model, _ = build("tf_efficientnet_lite0")
        return model, list(torch.randn(count, 3, 224, 224).split(8))
    if name == "deeplab":
        model, _ = build("deeplab")
        items = images(count, 128, 256)
    else:
        model = deeplab_v3_plus_lite0().eval()
        items = images(count, 240, 320)
    return model, [items[start : start + 8] for start in range(0, count, 8)]


def measure(name: str, held: int, clock: Callable[[], float], usual_memory: bool) -> dict[str, Any]:
    """Returns the seconds of each part for one network by a clock; with memory kept as in a pruning, or as usual."""

    def timed(work: Callable[[], T]) -> tuple[T, float]:
        start = clock()
        result = work()
        return result, clock() - start

    torch.manual_seed(0)
    model, batches = subject(name, 4 * held)
    use_channels_last(model)
    found = find_groups(model, batches[0][:1])
    memory = ExitStack()
    if not usual_memory:
        memory.enter_context(kept_memory(model))
    evidence = Evidence.of(batches, CURVES, divergence_for(model), images=held, pixels=call_pixels(model))
    moments, taking = timed(lambda: evidence.moments(model, found))
    scorer = build_criterion("sirfp_setwise", model, found.groups, seed=0)
    if not isinstance(scorer, Setwise) or moments is None:
        raise TypeError("the default criterion orders channels by moments")
    learn, order = scorer.learn, list[float]()
    scorer.learn = lambda *given: order.append(timed(lambda: learn(*given))[1])  # type: ignore[method-assign]
    _, both = timed(lambda: evidence.learn(model, found, scorer, moments))
    row: dict[str, Any] = {"model": name, "groups": len(found.groups), "moments_s": taking}
    row |= {"gradients_s": both - order[0], "order_s": order[0]}
    if name in BOUNDS:
        meter = evidence.meter(model, found, scorer, moments)
        if meter is not None:
            _, seconds = timed(lambda: measure_curves(meter))
            row |= {"curves_s": seconds, "points": meter.points, "images": held, "bound_s": BOUNDS[name]}
    memory.close()
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="seconds of the processor, on a busy machine")
    parser.add_argument("--usual-memory", action="store_true", help="do not keep memory as a pruning does")
    parser.add_argument("--images", type=int, default=32, help="held out for the curves (default 32)")
    parser.add_argument("--models", nargs="+", default=[*BOUNDS, "deeplab"], choices=[*BOUNDS, "deeplab"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.processor_time else time.perf_counter
    rows = [measure(name, args.images, clock, args.usual_memory) for name in args.models]
    for row in rows:
        row["met"] = row.get("curves_s", 0.0) <= row.get("bound_s", 0.0) and (
            row["model"] != "deeplab" or row["order_s"] <= ORDER
        )
    if args.json:
        print(json.dumps({"rows": rows, "order_bound_s": ORDER, "clock": clock.__name__, "machine": machine()}))
    else:
        for row in rows:
            parts = [f"{key.removesuffix('_s')} {row[key]:.1f} s" for key in row if key.endswith("_s")]
            print(f"{row['model']}, {row['groups']} groups: {', '.join(parts)}: {'met' if row['met'] else 'NOT MET'}")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
