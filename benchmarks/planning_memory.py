"""The memory that finding groups, planning and cutting need, relative to the network's own.

    python benchmarks/planning_memory.py [--model mask-rcnn | retinanet | deeplab | NAME of timm's] [--json]

Measures the growth of the process's peak resident memory (Linux) beyond its memory before, which includes the network.
A forward pass before it loads PyTorch's libraries. The memory of a forward pass alone is reported for comparison.
Bound: twice the network's parameters and buffers. Exit code 1 if it is not met.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from planning import planned
from subjects import build, machine

from sirfp.network.forward import call, inference

BOUND = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", default="mask-rcnn")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="128 256, or as timm has it")
    parser.add_argument("--keep-flops", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    model, inputs = build(args.model, args.size)
    own = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])

    def forward() -> None:
        with inference(model):
            call(model, inputs)

    forward()
    plain = growth(forward)
    extra = growth(lambda: planned(model, inputs, args.keep_flops))
    result = {
        "model": args.model,
        "model_mib": own / 2**20,
        "forward_mib": plain / 2**20,
        "planning_mib": extra / 2**20,
        "ratio": extra / own,
        "within_bounds": extra <= BOUND * own,
        "machine": machine(),
    }
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{args.model}: {own / 2**20:.0f} MiB; a forward pass takes {plain / 2**20:.0f} MiB more")
        print(
            f"planning and cutting: {extra / 2**20:.0f} MiB more, {extra / own:.2f} times the network (bound {BOUND})"
        )
        print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    return 0 if result["within_bounds"] else 1


def growth(work: Callable[[], object]) -> int:
    """The growth of the process's peak memory during the work, in bytes."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def status(key: str) -> int:
    """A size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
