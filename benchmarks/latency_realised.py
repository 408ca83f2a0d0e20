"""What FLOPs removed are worth in time: dense and pruned networks timed in turns.

    python benchmarks/latency_realised.py [--models deeplab resnet50] [--batches 1 8] [--round-to 1 8 16]
                                          [--runtimes eager channels-last compiled onnxruntime] [--json]

Networks with random weights and channels worth random numbers, cut to a share of their FLOPs with widths as they come
and as multiples; onnxruntime only where it is installed with what exporting needs. One table: each runtime's dense
network and its pruned ones take turns. Bound: with 60% of the FLOPs removed (met to 0.5%), at most half of the dense
latency in the better of compiled PyTorch and onnxruntime with the best multiple. Ends with 1 where it is not met.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from subjects import build, machine
from torch import nn

from sirfp.channels import find_groups
from sirfp.criteria import build_criterion
from sirfp.prune import cut
from sirfp.target import Target, choose

RUNTIMES = ("eager", "channels-last", "compiled", "onnxruntime")
COUNTED = ("compiled", "onnxruntime")  # the runtimes of the bound
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
    lacking = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]
    runtimes = [r for r in args.runtimes if r != "onnxruntime" or not lacking]
    rows = []
    for name in args.models:
        networks, kept = pruned(name, args)
        for batch in args.batches:
            x = torch.randn(batch, 3, *(args.size or ((128, 256) if name == "deeplab" else (224, 224))))
            for runtime in runtimes:
                times = compare(networks, x, runtime, args)
                shares = {key: times[key] / times["dense"] for key in times if key != "dense"}
                row = {"model": name, "batch": batch, "runtime": runtime, "dense_s": times["dense"], "share": shares}
                rows.append(row | {"kept_flops": kept})
                if not args.json:
                    print(line(rows[-1]), flush=True)
    result = {
        "keep_flops": args.keep_flops,
        "rows": rows,
        "onnxruntime_lacks": lacking,
        **verdict(rows, args.keep_flops),
    }
    result["machine"] = machine()
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print({key: result[key] for key in ("best", "flops_exact", "within_bounds")})
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 0 if result["within_bounds"] else 1


def pruned(name: str, args: argparse.Namespace) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The dense network and one for each multiple, ready to be called with a batch, and the FLOPs that these keep."""
    model, inputs = build(name, args.size)
    found = find_groups(model, inputs)
    scores = build_criterion("random", model, found.groups, seed=0).scores()
    networks, kept = {"dense": model}, {}
    for multiple in args.round_to:
        choice = choose(model, inputs, found, scores, Target("flops", args.keep_flops), round_to=multiple)
        networks[f"round to {multiple}"] = small = copy.deepcopy(model)
        plan = cut(small, found, choice.keep)
        kept[f"round to {multiple}"] = plan.flops[1] / plan.flops[0]
    return {key: Segmentor(net).eval() if name == "deeplab" else net.eval() for key, net in networks.items()}, kept


def compare(
    networks: dict[str, nn.Module], x: torch.Tensor, runtime: str, args: argparse.Namespace
) -> dict[str, float]:
    """Median seconds of a call of each network, in turns."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        calls = {key: ready(network, x, runtime, Path(folder), args.threads) for key, network in networks.items()}
        times: dict[str, list[float]] = {key: [] for key in calls}
        for turn in range(args.repeats + 2):
            for key, work in calls.items():
                start = time.perf_counter()
                work()
                if turn > 1:
                    times[key].append(time.perf_counter() - start)
    torch.compiler.reset()
    return {key: statistics.median(values) for key, values in times.items()}


def ready(network: nn.Module, x: torch.Tensor, runtime: str, folder: Path, threads: int) -> Callable[[], object]:
    """A network in one of the runtimes, as a call without arguments."""
    if runtime == "onnxruntime":
        return exported(network, x, folder, threads)
    if runtime == "eager":
        return lambda: network(x)
    wide = copy.deepcopy(network).to(memory_format=torch.channels_last)
    image = x.contiguous(memory_format=torch.channels_last)
    work = torch.compile(wide) if runtime == "compiled" else wide
    return lambda: work(image)


def exported(network: nn.Module, x: torch.Tensor, folder: Path, threads: int) -> Callable[[], object]:
    """A network as an ONNX file in onnxruntime."""
    import onnxruntime

    file = folder / f"{len(list(folder.iterdir()))}.onnx"
    program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)


def verdict(rows: list[dict], keep_flops: float) -> dict:
    """The best share of the dense latency for each network and batch, and whether all is within bounds."""
    best: dict[str, float] = {}
    for row in rows:
        if row["runtime"] in COUNTED:
            key = f"{row['model']}, batch {row['batch']}"
            best[key] = min(best.get(key, float("inf")), *row["share"].values())
    exact = all(0 <= keep_flops - kept <= EXACT * keep_flops for row in rows for kept in row["kept_flops"].values())
    return {"best": best, "flops_exact": exact, "within_bounds": exact and all(s <= BOUND for s in best.values())}


def line(row: dict) -> str:
    """One row in words."""
    shares = ", ".join(f"{name} {value:.2f}" for name, value in row["share"].items())
    return f"{row['model']:10} batch {row['batch']} {row['runtime']:14} {row['dense_s'] * 1e3:8.1f} ms dense; {shares}"


if __name__ == "__main__":
    raise SystemExit(main())
