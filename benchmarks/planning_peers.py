"""Planning and surgery for each family of networks beside torch-pruning's own pruner, in turns, on the same networks.

    python benchmarks/planning_peers.py [--models NAME ...] [--repeats 3] [--json]

Ours: finding groups, trying them on copies, scoring by magnitude, a budget of half of the FLOPs, cutting; once more
without the trial on copies, which is what torch-pruning leaves to its user, beside it for comparison.
torch-pruning's: its high-level pruner as its guide has it (30% of the channels, the classifier left out), with random
importance, its cheapest, from its construction to the cut. Its answer counts only if the network then runs and trains;
where not, the reason stands in its place. Medians of repeats on fresh networks. Bound: no slower on the networks that
it can do. Ends with 1 where it is not met; where torch-pruning is not installed, ours stand alone and the bound is not
decided.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import statistics

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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    there = importlib.util.find_spec("torch_pruning") is not None
    rows = []
    for name in args.models:
        rows.append(row := measure(name, args.repeats, there))
        if not args.json:
            print(line(row), flush=True)
    slower = [row["model"] for row in rows if row.get("ratio", 0) > 1]
    result = {
        "torch_pruning": "installed" if there else "not installed",
        "rows": rows,
        "slower": slower,
        "within_bounds": not slower if there else None,
        "machine": machine(),
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print("torch-pruning is not installed" if not there else f"slower than torch-pruning: {slower or 'none'}")
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 1 if slower else 0


def measure(name: str, repeats: int, there: bool) -> dict:
    """Median seconds of both on one network, or why torch-pruning does not do it."""
    ours, theirs, error = {True: [], False: []}, [], ""
    for _ in range(repeats):
        for trial, seconds in ours.items():
            model, inputs = build(name)
            with torch.no_grad():
                model(inputs)
            seconds.append(sum(planned(model, inputs, 0.5, trial)[0]))
        if there and not error:
            model, inputs = build(name)
            if name in DETECTRON2:
                model.num_classes = -1  # no linear layer of this width
            try:
                theirs.append(prune_by_torch_pruning(model, inputs)["seconds"])
            except Exception as failure:  # whatever the tool or the network raises
                error = one_line(failure)
    row = {"model": name, "ours_s": statistics.median(ours[True]), "untried_s": statistics.median(ours[False])}
    if error:
        row["error"] = error
    elif theirs:
        row |= {"theirs_s": (there_s := statistics.median(theirs)), "ratio": row["ours_s"] / there_s}
    return row


def line(row: dict) -> str:
    """One row in words."""
    there = f"{row['theirs_s']:.2f} s, ratio {row['ratio']:.2f}" if "ratio" in row else row.get("error", "-")
    ours = f"{row['ours_s']:6.2f} s ({row['untried_s']:.2f} s without the trial)"
    return f"{row['model']:32} {ours}, torch-pruning {there}"


if __name__ == "__main__":
    raise SystemExit(main())
