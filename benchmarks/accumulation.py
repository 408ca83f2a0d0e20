"""What SIRFP's statistics add to a training step of a segmentor, a classifier or a detector, and what they hold.

    python benchmarks/accumulation.py [--json] [--model deeplab | resnet50 | retinanet] [--size 128 256] [--batch 2]
                                      [--precision float32] [--rounds 8]

Rounds with and without statistics alternate, each of as many steps as the default period, so that every round with
them has one look; the ratio is of medians. Bound: at most 3% of a step, with the defaults of the config
(SIRFP.ACCUMULATE_PERIOD and ACCUMULATE_STRIDE). Ends with 1 where it is not met.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from detectron2.utils.events import EventStorage
from subjects import machine, trained

from sirfp.channels import find_groups
from sirfp.config import load_config
from sirfp.criteria import build_criterion
from sirfp.observe import Observer
from sirfp.precision import lay_out


def main() -> int:
    defaults = load_config("").SIRFP
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", choices=("deeplab", "resnet50", "retinanet"), default="deeplab")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--period", type=int, default=defaults.ACCUMULATE_PERIOD)
    parser.add_argument("--stride", type=int, default=defaults.ACCUMULATE_STRIDE)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, loss_of, example = trained(args.model, args.batch, *args.size)
    model = lay_out(model)
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

    times: dict[bool, list[float]] = {False: [], True: []}
    with EventStorage(0):
        for round_ in range(2 * args.rounds + 2):
            looking = round_ % 2 == 1
            if looking:
                observer.attach()
            start = time.perf_counter()
            for _ in range(args.period):
                step()
                if looking:
                    observer.step()
            if round_ > 1:  # the first of each warms up
                times[looking].append((time.perf_counter() - start) / args.period)
            observer.detach()
    plain, watched = (statistics.median(times[key]) for key in (False, True))
    ratios = sorted(b / a - 1 for a, b in zip(times[False], times[True], strict=True))
    held = sum(a.matrix().numel() * 4 for a in criterion.averages.values())
    result = {
        "model": args.model,
        "step_s": plain,
        "step_with_statistics_s": watched,
        "share": watched / plain - 1,
        "share_of_pairs": {"lowest": ratios[0], "median": statistics.median(ratios), "highest": ratios[-1]},
        "period": args.period,
        "stride": args.stride,
        "precision": args.precision,
        "accumulators_mib": held / 2**20,
        "layers": len(criterion.averages),
        "machine": machine(),
    }
    result["within_bounds"] = result["share_of_pairs"]["median"] <= 0.03
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"a step: {plain:.3f} s, with statistics {watched:.3f} s ({args.precision})")
        pairs = result["share_of_pairs"]
        print(f"added: {pairs['median']:+.1%} (pairs from {pairs['lowest']:+.1%} to {pairs['highest']:+.1%}; bound 3%)")
        print(f"every {args.period} iterations, stride {args.stride}; accumulators hold {held / 2**20:.0f} MiB")
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 0 if result["within_bounds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
