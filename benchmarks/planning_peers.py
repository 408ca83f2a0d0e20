"""Times planning and surgery against torch-pruning's pruner, in turns, on the same networks of each family.

    python benchmarks/planning_peers.py [--models NAME ...] [--repeats 3] [--threads 2] [--processor-time] [--json]

sirfp: finding groups, trying cuts on copies, scoring by magnitude, a budget of half of the FLOPs, cutting; and, for
comparison, the same without the trial on copies, which torch-pruning does not have. torch-pruning: its high-level
pruner as in its guide (30% of the channels, without the classifier), with random importance, its fastest, from
construction to cut. Its time counts only if the pruned network then runs and trains; otherwise the error is reported.
Times are medians of repeats on new networks. With --processor-time they are the processor's, on which other work on the
machine has less influence; take one thread then, as the times of all threads are added. Bound: sirfp is not slower on
the networks that torch-pruning can prune. Exit code 1 if it is not met. If torch-pruning is not installed, only sirfp
is timed and the bound is not decided.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import statistics
import time
from collections.abc import Callable

import torch
from planning import planned
from prunability import one_line
from prunability_timm import prune_by_torch_pruning
from subjects import DETECTRON2, build, machine

FAMILIES = (
    "resnet50", "mobilenetv3_large_100", "efficientnet_b0", "densenet121", "regnetx_002", "vgg11_bn", "convnext_tiny",
    "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "deeplab", "retinanet", "mask-rcnn",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--models", nargs="+", default=FAMILIES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="measure the processor's time")
    args = parser.parse_args()
    clock = time.process_time if args.processor_time else time.perf_counter
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    installed = importlib.util.find_spec("torch_pruning") is not None
    rows = []
    for name in args.models:
        rows.append(row := measure(name, args.repeats, installed, clock))
        if not args.json:
            print(line(row), flush=True)
    slower = [row["model"] for row in rows if row.get("ratio", 0) > 1]
    result = {
        "torch_pruning": "installed" if installed else "not installed",
        "rows": rows,
        "slower": slower,
        "within_bounds": not slower if installed else None,
        "clock": "processor" if args.processor_time else "wall",
        "machine": machine(),
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print("torch-pruning is not installed" if not installed else f"slower than torch-pruning: {slower or 'none'}")
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 1 if slower else 0


def measure(name: str, repeats: int, installed: bool, clock: Callable[[], float] = time.perf_counter) -> dict:
    """Median seconds of both on one network, or the reason why torch-pruning fails."""
    ours, theirs, error = {True: [], False: []}, [], ""
    for _ in range(repeats):
        for trial, seconds in ours.items():
            model, inputs = build(name)
            with torch.no_grad():
                model(inputs)
            seconds.append(sum(planned(model, inputs, 0.5, trial, clock)[0]))
        if installed and not error:
            model, inputs = build(name)
            if name in DETECTRON2:
                model.num_classes = -1  # a width that no linear layer has
            try:
                theirs.append(prune_by_torch_pruning(model, inputs, clock)["seconds"])
            except Exception as failure:  # any error of the tool or the network
                error = one_line(failure)
    row = {"model": name, "ours_s": statistics.median(ours[True]), "untried_s": statistics.median(ours[False])}
    if error:
        row["error"] = error
    elif theirs:
        row |= {"theirs_s": (theirs_s := statistics.median(theirs)), "ratio": row["ours_s"] / theirs_s}
    return row


def line(row: dict) -> str:
    """One row as text."""
    there = f"{row['theirs_s']:.2f} s, ratio {row['ratio']:.2f}" if "ratio" in row else row.get("error", "-")
    ours = f"{row['ours_s']:6.2f} s ({row['untried_s']:.2f} s without the trial)"
    return f"{row['model']:32} {ours}, torch-pruning {there}"


if __name__ == "__main__":
    raise SystemExit(main())
