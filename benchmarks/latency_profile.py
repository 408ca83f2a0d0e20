"""Profiles pruned and dense networks: each part's share of FLOPs and its share of time.

    python benchmarks/latency_profile.py [--models deeplab resnet50] [--batch 1] [--round-to 1 8 16]
                                         [--runtimes onnxruntime compiled] [--json]

The networks of `latency_realised.py` run in turns under the runtimes' own profilers (onnxruntime's, `torch.profiler`).
Times are medians of calls. A part is all convolutions with one kernel size and one input size, all matrix products, or
one other operator. There is a table for each pruned network. Parts of less than 0.3% are only in the sum:

- FLOPs, time: the part's share of the dense network's FLOPs and time;
- FLOPs kept, time kept: pruned / dense;
- computed: pruned / dense of the FLOPs of the operands that onnxruntime reports, with padding;
- over: the time that the part takes beyond (its dense time x the kept share of all FLOPs), in per cent of the dense
  latency. The sum is the distance between the network's relative latency and its kept share of FLOPs.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from latency_realised import pruned
from profile_tables import calls, table, title
from subjects import image_size, machine
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from sirfp.exporting import Session, check_packages, write_fixed
from sirfp.exporting.runtimes import prepare_call
from sirfp.network.forward import inference

RUNTIMES = ("onnxruntime", "compiled", "channels-last", "eager")
WARMUP = 2
REST, PRODUCTS = "rest", "matrix products"


class Profile(NamedTuple):
    """One network in one runtime, by parts.

    Attributes:
        seconds: time of a call in each part.
        computed: multiply-adds of the operands that the runtime reports; empty if it reports none.
        operators: number of calls of each operator in a call of the network, by the runtime's names.
    """

    seconds: dict[str, float]
    computed: dict[str, float]
    operators: dict[str, int]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--models", nargs="+", default=["deeplab", "resnet50"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES[:2]), choices=RUNTIMES)
    parser.add_argument("--keep-flops", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="128 256, or as timm has it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    rows = []
    for name in args.models:
        networks, _ = pruned(name, args)
        x = torch.randn(args.batch, 3, *image_size(name, args.size))
        flops = {key: part_flops(network, x) for key, network in networks.items()}
        for runtime in args.runtimes:
            find = in_onnxruntime if runtime == "onnxruntime" else in_pytorch
            with tempfile.TemporaryDirectory() as folder:
                found = find(runtime, networks, x, Path(folder), args)
            for key in (key for key in networks if key != "dense"):
                about = {"model": name, "batch": args.batch, "runtime": runtime, "network": key}
                rows.append(about | compared(found["dense"], found[key], flops["dense"], flops[key]))
                if not args.json:
                    print(f"{title(rows[-1])}\n\n{table(rows[-1]).markdown()}\n\n{calls(rows[-1])}\n", flush=True)
    result = {"rows": rows, "machine": machine()}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 0


def part_of(kernel: Any, size: Any) -> str:
    """The part that a convolution belongs to."""
    return f"{kernel[0]} x {kernel[1]} on {size[0]} x {size[1]}"


def part_flops(network: nn.Module, x: torch.Tensor) -> dict[str, float]:
    """Multiply-adds of convolutions and matrix products in each part."""
    found: dict[str, float] = defaultdict(float)

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        fan_in = module.weight[0].numel()
        part = part_of(module.kernel_size, inputs[0].shape[2:]) if isinstance(module, nn.Conv2d) else PRODUCTS
        found[part] += output.numel() * fan_in

    counted = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [module.register_forward_hook(count) for module in counted]
    with inference(network):
        network(x)
    for handle in handles:
        handle.remove()
    return dict(found)


def in_onnxruntime(
    runtime: str, networks: Mapping[str, nn.Module], x: torch.Tensor, folder: Path, args: argparse.Namespace
) -> dict[str, Profile]:
    """Profiles by onnxruntime's profiler."""
    check_packages()
    sessions = {}
    for key, network in networks.items():
        file = folder / f"{len(sessions)}.onnx"
        write_fixed(network, x, file)
        sessions[key] = Session(file, args.threads, profile=str(file))
    calls = args.repeats + WARMUP
    for _ in range(calls):
        for session in sessions.values():
            session(x)
    return {key: read_profile(Path(session.session.end_profiling()), calls) for key, session in sessions.items()}


def read_profile(file: Path, calls: int) -> Profile:
    """Reads the file that onnxruntime's profiler wrote for a number of calls."""
    events = json.loads(file.read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    count = len(nodes) // calls
    turns = [nodes[i * count : (i + 1) * count] for i in range(WARMUP, calls)]
    whole = [e["dur"] / 1e6 for e in events if e["name"] == "model_run"][WARMUP:]
    seconds, computed, operators = defaultdict(float), defaultdict(float), defaultdict(int)
    for column in zip(*turns, strict=True):
        about = column[0]["args"]
        (given, *more), [made] = shapes(about["input_type_shape"]), shapes(about["output_type_shape"])
        operator = about["op_name"]
        operators[f"{operator} in blocks" if "_nchwc" in column[0]["name"] else operator] += 1
        part = operator
        if "Conv" in operator:
            part = part_of(more[0][2:], given[2:])
            computed[part] += math.prod(made) * math.prod(more[0][1:])
        elif operator in ("Gemm", "MatMul", "FusedGemm", "FusedMatMul"):
            part = PRODUCTS
            computed[part] += math.prod(made) * given[-1]
        seconds[part] += statistics.median(e["dur"] for e in column) / 1e6
    within = [sum(e["dur"] for e in turn) / 1e6 for turn in turns]
    seconds[REST] = statistics.median(all_ - nodes_ for all_, nodes_ in zip(whole, within, strict=True))
    return Profile(dict(seconds), dict(computed), dict(operators))


def shapes(types: list[dict[str, list[int]]]) -> list[list[int]]:
    """The shapes of operands from the profile's lists of types and shapes."""
    return [shape for operand in types for shape in operand.values()]


def in_pytorch(
    runtime: str, networks: Mapping[str, nn.Module], x: torch.Tensor, folder: Path, args: argparse.Namespace
) -> dict[str, Profile]:
    """Profiles by `torch.profiler`; kernels that the compiler generates are in the rest."""
    works: dict[str, Callable] = {key: prepare_call(runtime, network, x, folder) for key, network in networks.items()}
    for _ in range(WARMUP):
        for work in works.values():
            work()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for turn in range(args.repeats):
            for key, work in works.items():
                with record_function(f"{key}/{turn}"):
                    work()
    torch.compiler.reset()
    return {key: read_events(profiler.events(), key, args.repeats) for key in networks}


def read_events(events: Any, key: str, repeats: int) -> Profile:
    """One network's profile from the events of calls in turns."""
    turns: list[dict[str, float]] = [defaultdict(float) for _ in range(repeats)]
    operators: dict[str, int] = defaultdict(int)
    for turn, parts in enumerate(turns):
        [whole] = [event for event in events if event.name == f"{key}/{turn}"]
        for event in outermost(whole):
            parts[event_part(event)] += event.cpu_time_total / 1e6
            operators[event.name.removeprefix("aten::")] += turn == 0
        parts[REST] = whole.cpu_time_total / 1e6 - sum(parts.values())
    seconds = {part: statistics.median(parts[part] for parts in turns) for part in turns[0]}
    return Profile(seconds, {}, dict(operators))


def outermost(event: Any) -> list[Any]:
    """The operators within an event that are not called by another operator."""
    found = []
    for child in event.cpu_children:
        found += [child] if child.name.startswith(("aten::", "mkldnn::")) else outermost(child)
    return found


def event_part(event: Any) -> str:
    """The part that an operator belongs to."""
    if "conv" in event.name:
        given, weight = event.input_shapes[:2]
        return part_of(weight[2:], given[2:])
    name = event.name.partition("::")[2]
    return PRODUCTS if name in ("linear", "addmm", "mm", "matmul", "_linear_pointwise") else name


def compared(dense: Profile, small: Profile, flops: Mapping[str, float], less: Mapping[str, float]) -> dict[str, Any]:
    """Compares a pruned network's profile with the dense one's."""
    whole, kept = sum(dense.seconds.values()), sum(less.values()) / sum(flops.values())
    parts = []
    for part in dict.fromkeys([*flops, *dense.seconds, *small.seconds]):
        before, after = dense.seconds.get(part, 0.0), small.seconds.get(part, 0.0)
        row: dict[str, Any] = {"part": part, "dense_s": before, "pruned_s": after}
        row["over"] = (after - kept * before) / whole
        if part in flops:
            row |= {"flops": flops[part] / sum(flops.values()), "flops_kept": less[part] / flops[part]}
        if part in small.computed:
            row["computed"] = small.computed[part] / dense.computed[part]
        parts.append(row)
    computed = sum(small.computed.values()) / sum(dense.computed.values()) if dense.computed else None
    return {
        "parts": sorted(parts, key=lambda row: -row["over"]),
        "dense_s": whole,
        "pruned_s": sum(small.seconds.values()),
        "flops_kept": kept,
        "computed": computed,
        "operators": {"dense": dense.operators, "pruned": small.operators},
    }


if __name__ == "__main__":
    raise SystemExit(main())
