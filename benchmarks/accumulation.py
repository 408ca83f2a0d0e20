"""The time that SIRFP's statistics add to a training step of a segmentor, classifier or detector, and their memory.

    python benchmarks/accumulation.py [--json] [--model deeplab | resnet50 | retinanet] [--size 128 256] [--batch 2]
                                      [--precision float32] [--rounds 16]

Steps with an update of the statistics alternate with plain steps. The added time is a step with an update minus the
mean of the plain steps before and after it, so that other load on the machine affects both. A run has one update per
period. On the other iterations the hooks are called and do nothing; this is timed separately. Bound: at most 3% of a
step, with the config's defaults (SIRFP.ACCUMULATE_PERIOD and the option `stride`). Exit code 1 if it is not met.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext

import torch
from detectron2.utils.events import EventStorage
from subjects import machine, trained

from sirfp.channels import find_groups
from sirfp.config import load_config
from sirfp.criteria import CRITERIA, Criterion, build_criterion
from sirfp.criteria.observer import Observer
from sirfp.network.channels_last import use_channels_last


def main() -> int:
    defaults = load_config("").SIRFP
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", choices=("deeplab", "resnet50", "retinanet"), default="deeplab")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--period", type=int, default=defaults.ACCUMULATE_PERIOD)
    parser.add_argument("--stride", type=int, default=CRITERIA["sirfp"].defaults()["stride"])
    parser.add_argument("--rounds", type=int, default=16, help="steps with an update (default 16)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, loss_of, example = trained(args.model, args.batch, *args.size)
    model = use_channels_last(model)
    found = find_groups(model, example)
    criterion = build_criterion("sirfp", model, found.groups, stride=args.stride)
    observer = Observer(model, criterion, args.period)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16"):
            loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def timed(looking: bool) -> float:
        observer.iteration = 0  # a multiple of the period, so that statistics are updated
        start = time.perf_counter()
        with observer if looking else nullcontext():
            step()
            if looking:
                observer.step()
        return time.perf_counter() - start

    with EventStorage(0):
        for looking in (False, True):  # the first step of each kind is a warm-up
            timed(looking)
        times = [timed(bool(i % 2)) for i in range(2 * args.rounds + 1)]
    plain = statistics.median(times[::2])
    looks = [times[i] - (times[i - 1] + times[i + 1]) / 2 for i in range(1, len(times), 2)]
    idle = waiting(criterion, observer) if args.period > 1 else 0.0
    shares = sorted((look + (args.period - 1) * idle) / args.period / plain for look in looks)
    held = sum(a.matrix().numel() * 4 for a in criterion.averages.values())
    result = {
        "model": args.model,
        "step_s": plain,
        "look_s": statistics.median(looks),
        "idle_s": idle,
        "share": {"lowest": shares[0], "median": statistics.median(shares), "highest": shares[-1]},
        "looks": len(looks),
        "period": args.period,
        "stride": args.stride,
        "precision": args.precision,
        "accumulators_mib": held / 2**20,
        "layers": len(criterion.averages),
        "machine": machine(),
    }
    result["within_bounds"] = result["share"]["median"] <= 0.03
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"a step: {plain:.3f} s, a look adds {result['look_s']:.3f} s ({args.precision})")
        share = result["share"]
        print(f"added: {share['median']:+.1%} (looks from {share['lowest']:+.1%} to {share['highest']:+.1%}; bound 3%)")
        print(f"every {args.period} iterations, stride {args.stride}; accumulators hold {held / 2**20:.0f} MiB")
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 0 if result["within_bounds"] else 1


def waiting(criterion: Criterion, observer: Observer) -> float:
    """Seconds of an iteration without an update: all hooks are called, and the iteration ends."""
    hooks = [observer._see(feature) for feature in criterion.features()]
    x, repeats = torch.empty(0), 20
    start = time.perf_counter()
    for _ in range(repeats):
        observer.iteration = 1
        for hook in hooks:
            hook(x)
        observer.step()
    return (time.perf_counter() - start) / repeats


if __name__ == "__main__":
    raise SystemExit(main())
