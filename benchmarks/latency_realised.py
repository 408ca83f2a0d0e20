"""How much time removed FLOPs save: dense and pruned networks are timed in turns.

    python benchmarks/latency_realised.py [--models deeplab resnet50] [--batches 1 8] [--round-to 1 8 16]
                                          [--runtimes eager channels-last bfloat16 compiled onnxruntime]
                                          [--json]

Networks with random weights are cut by random scores to a share of their FLOPs, with any width and with multiples. In
each of `sirfp.exporting.runtimes` the dense network and the pruned ones run in turns. Bound: with 60% of the FLOPs
removed (met to 0.5%), at most half of the dense latency, in the faster of compiled PyTorch and onnxruntime with the
best multiple; not decided if neither is measured. Exit code 1 if the bound is not met or a runtime is missing.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import tempfile
from pathlib import Path

import torch
from subjects import build, image_size, machine
from torch import nn

from sirfp.budget.decision import decide
from sirfp.budget.limits import Limits
from sirfp.budget.target import Flops
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.exporting.runtimes import RUNTIMES, compare
from sirfp.network.latency import Latency
from sirfp.prune import cut

COUNTED = ("compiled", "onnxruntime")  # the runtimes to which the bound applies
BOUND, EXACT = 0.5, 0.005


class Segmentor(nn.Module):
    """A Detectron2 semantic segmentor as a function of a normalised image batch: (N, 3, H, W) -> (N, classes, H, W)."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.head = model.backbone, model.sem_seg_head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--models", nargs="+", default=["deeplab", "resnet50"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--keep-flops", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="128 256, or as timm has it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    rows: list[dict] = []
    lacking: dict[str, str] = {}
    for name in args.models:
        networks, kept = pruned(name, args)
        for batch in args.batches:
            x = torch.randn(batch, 3, *image_size(name, args.size))
            for runtime in args.runtimes:
                with tempfile.TemporaryDirectory() as folder:
                    calls = {runtime: {key: (network, x) for key, network in networks.items()}}
                    found, failed = compare(calls, Path(folder), repeats=args.repeats, threads=args.threads)
                lacking |= failed
                if runtime in found:
                    rows.append(row(name, batch, runtime, found[runtime]) | {"kept_flops": kept})
                    if not args.json:
                        print(line(rows[-1]), flush=True)
    result = {
        "keep_flops": args.keep_flops,
        "rows": rows,
        "not_timed": lacking,
        **verdict(rows, args.keep_flops),
    }
    result["machine"] = machine()
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print({key: result[key] for key in ("best", "flops_exact", "within_bounds")})
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 1 if result["within_bounds"] is False or result["not_timed"] else 0


def pruned(name: str, args: argparse.Namespace) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The dense network and a pruned one for each multiple, called with a batch, and the FLOPs that these keep."""
    model, inputs = build(name, args.size)
    found = find_groups(model, inputs)
    criterion = build_criterion("random", model, found.groups, seed=0)
    networks, kept = {"dense": model}, {}
    for multiple in args.round_to:
        limits = Limits(partitions=(), round_to=multiple)
        choice = decide(model, inputs, found, criterion, Flops(args.keep_flops), limits)
        networks[f"round to {multiple}"] = small = copy.deepcopy(model)
        plan = cut(small, found, choice.keep)
        kept[f"round to {multiple}"] = plan.flops[1] / plan.flops[0]
    return {key: Segmentor(net).eval() if name == "deeplab" else net.eval() for key, net in networks.items()}, kept


def row(model: str, batch: int, runtime: str, times: dict[str, Latency]) -> dict:
    """Median seconds of the dense network's calls, and those of the pruned networks relative to it."""
    dense = times["dense"].median
    shares = {key: latency.median / dense for key, latency in times.items() if key != "dense"}
    spread = (times["dense"].high - times["dense"].low) / dense
    return {"model": model, "batch": batch, "runtime": runtime, "dense_s": dense, "spread": spread, "share": shares}


def verdict(rows: list[dict], keep_flops: float) -> dict:
    """The lowest relative latency for each network and batch, and whether all bounds are met."""
    best: dict[str, float] = {}
    for row in rows:
        if row["runtime"] in COUNTED:
            key = f"{row['model']}, batch {row['batch']}"
            best[key] = min(best.get(key, float("inf")), *row["share"].values())
    exact = all(0 <= keep_flops - kept <= EXACT * keep_flops for row in rows for kept in row["kept_flops"].values())
    within = exact and all(s <= BOUND for s in best.values()) if best else None
    return {"best": best, "flops_exact": exact, "within_bounds": within}


def line(row: dict) -> str:
    """One row as text."""
    shares = ", ".join(f"{name} {value:.2f}" for name, value in row["share"].items())
    dense = f"{row['dense_s'] * 1e3:8.1f} ms dense, quartiles {row['spread']:.0%} apart"
    return f"{row['model']:10} batch {row['batch']} {row['runtime']:14} {dense}; {shares}"


if __name__ == "__main__":
    raise SystemExit(main())
