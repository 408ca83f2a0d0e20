"""Measures the table of layers' times behind budgets of latency several times, and how far the tables differ.

    python benchmarks/latency_table.py [--model tf_efficientnet_lite0] [--clock PyTorch | onnxruntime]
        [--repeats 5] [--threads 1]

A budget of latency divides time between layers by this table, so what differs between two tables of the same network is
noise in the widths. Printed are the latency of the dense network by each table, and root mean squares of the deviations
from the mean table, relative to it: of the times of layers, and of their differences between neighbouring widths, which
decide where channels are removed. Times are divided by the dense network's of the same table.
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from subjects import build, machine

from sirfp.budget.latency import LatencyTable
from sirfp.budget.limits import Limits
from sirfp.channels import find_groups
from sirfp.exporting.clock import OnnxRuntimeClock
from sirfp.network.clock import IN_PYTORCH
from sirfp.network.kept_memory import kept_memory


def spread(tables: np.ndarray) -> float:
    """Returns the root mean square of deviations from the mean of tables, (tables, layers, points), relative to it."""
    mean = tables.mean(0)
    return float(np.sqrt(((tables - mean) ** 2).mean(0).sum() / (mean**2).sum()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="one of timm's")
    parser.add_argument("--clock", default="PyTorch", choices=["PyTorch", "onnxruntime"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round-to", type=int, default=16, help="widths are multiples of this (default 16)")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error("--repeats must be at least 2: one table does not differ from itself")
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    clock = IN_PYTORCH if args.clock == "PyTorch" else OnnxRuntimeClock(args.threads)
    model, inputs = build(args.model)
    limits = Limits(round_to=args.round_to)
    found = find_groups(model, inputs)
    with kept_memory(model):  # as in a pruning
        tables = [LatencyTable.measure(model, inputs, found, limits, clock).seconds for _ in range(args.repeats)]
    dense = np.array([table[:, -1].sum() for table in tables])
    shares = np.stack(tables) / dense[:, None, None]
    print("dense: " + ", ".join(f"{1e3 * seconds:.1f}" for seconds in dense) + " ms")
    between = spread(np.diff(shares))
    print(f"times of layers differ by {spread(shares):.1%}, differences between widths by {between:.1%}")
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
