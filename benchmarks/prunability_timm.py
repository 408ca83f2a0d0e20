"""Tries to prune the smallest network of every module of timm, by sirfp and by torch-pruning.

    python benchmarks/prunability_timm.py [--results output/prunability.jsonl] [--table docs/prunability_timm.md]
                                          [--modules resnet swin_transformer] [--tools sirfp torch-pruning]
    python benchmarks/prunability_timm.py --drawn 30 --tools sirfp --results output/prunability_drawn.jsonl

With --drawn another network of each module is tried than the smallest, drawn at random; its table is printed. Each
network gets random weights and statistics, is traced and pruned by two random plans to half of its FLOPs (or to the
least it can have), compared with the masked dense network, and trained for one step, forward and backward. torch-
pruning's high-level pruner removes 30% of the channels of each group, without the classifier. Every network runs in
its own process with limits on time and memory. Networks in the results file are not run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
from prunability import add_row, check_gradients, counted_flops, in_own_process, one_line, prune_to_half, read_rows
from randomised import randomised
from torch import nn

TOOLS = ("sirfp", "torch-pruning")
DRAWN = 45_000_000
"""Maximum number of parameters of networks that are drawn."""
CHANNELS = 0.3  # the share of each group's channels that torch-pruning removes: about half of the FLOPs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("output/prunability.jsonl"))
    parser.add_argument("--table", type=Path, help="write the Markdown table here")
    parser.add_argument("--drawn", type=int, metavar="SEED", help="try other networks, drawn with this seed")
    parser.add_argument("--modules", nargs="*", default=timm.list_modules())
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=TOOLS)
    parser.add_argument("--seconds", type=int, default=600, help="limit for one network (default %(default)s)")
    parser.add_argument("--memory", type=float, default=18, help="limit in GiB (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time (default %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process that has used several threads cannot be forked safely
    done = read(args.results)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    file = args.results.with_suffix(".networks.json")
    networks = chosen(args.modules, file) if args.drawn is None else drawn(args.modules, args.drawn, file)
    for tool in args.tools:
        importlib.import_module("sirfp.prune" if tool == "sirfp" else "torch_pruning")
    todo = [(tool, module) for module in networks for tool in args.tools if (tool, module) not in done]
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(lambda job: in_process(*job, networks[job[1]], args), todo):
            done[row["tool"], row["module"]] = row
            add_row(args.results, row)
            print(f"{row['module']:28} {row['tool']:14} {verdict(row)}", flush=True)
    from prunability_table import network_rows, summary, table

    print(summary(done))
    if args.drawn is not None:
        print("\n".join(network_rows(done)))
    elif args.table:
        args.table.parent.mkdir(parents=True, exist_ok=True)
        args.table.write_text(table(done))
    return 0


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of a results file by tool and module."""
    return {(row["tool"], row["module"]): row for row in read_rows(path)}


def in_process(tool: str, module: str, network: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures in its own process; a crash or an exceeded limit becomes an "error"."""
    row = {"tool": tool, "module": module, "model": network}
    limits = {"seconds": args.seconds, "threads": args.threads, "memory": args.memory}
    return row | in_own_process(lambda: measure(tool, network), **limits)


def chosen(modules: Sequence[str], path: Path) -> dict[str, str]:
    """The smallest network of each module, stored in a file because the search takes a while."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    for module in modules:
        if module not in known:
            known[module] = smallest(module)
            path.write_text(json.dumps(known, indent=1))
    return known


def drawn(modules: Sequence[str], seed: int, path: Path) -> dict[str, str]:
    """Another network of each module than the smallest, drawn from those of at most `DRAWN` parameters, by module.

    Modules without such a network are left out. The choice is stored in a file because the search takes a while.
    """
    if path.is_file():
        return json.loads(path.read_text())
    generator, known = random.Random(seed), {}
    for module in modules:
        sizes = parameters(module)
        if not sizes:
            continue
        others = sorted(name for name, size in sizes.items() if name != least(sizes) and size <= DRAWN)
        if others:
            known[module] = generator.choice(others)
    path.write_text(json.dumps(known, indent=1))
    return known


def verdict(row: dict[str, Any]) -> str:
    """One row as text."""
    if row.get("error"):
        return f"{row['model']}: {row['error']}"
    return f"{row['model']}: {row['kept']:.2f} of FLOPs, difference {row.get('difference')}, {row['seconds']:.1f} s"


def smallest(module: str) -> str:
    """The network of a module with the fewest parameters."""
    sizes = parameters(module)
    if not sizes:
        sizes = {name: sum(p.numel() for p in timm.create_model(name).parameters())
                 for name in timm.list_models(module=module)}  # fmt: skip
    return least(sizes)


def least(sizes: dict[str, int]) -> str:
    """The name of the least size, the first in the alphabet of several."""
    return min(sizes, key=lambda name: (sizes[name], name))


def parameters(module: str) -> dict[str, int]:
    """{network of a module: its number of parameters}, counted without memory for weights, where that is possible."""
    sizes = {}
    for name in timm.list_models(module=module):
        with torch.device("meta"):
            try:
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
            except Exception as error:  # some networks compute with their weights in the constructor
                logging.debug("%s: %s", name, error)
    return sizes


def measure(tool: str, name: str) -> dict[str, Any]:
    """Prunes one network and returns its row; an exception of the tool becomes an "error"."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    model = randomised(timm.create_model(name).eval())
    inputs = torch.randn(1, *model.default_cfg["input_size"])
    row: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters()), "size": list(inputs.shape[1:])}
    start = time.perf_counter()
    with torch.no_grad():
        model(inputs)
    row["forward_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    try:
        row |= prune_by_sirfp(model, inputs) if tool == "sirfp" else prune_by_torch_pruning(model, inputs)
    except Exception as error:
        row["error"] = one_line(error)
    return row | {"all_seconds": time.perf_counter() - start}


def prune_by_sirfp(model: nn.Module, inputs: torch.Tensor) -> dict[str, Any]:
    """Prunes by sirfp with two random plans, and lists the frozen channels."""
    return prune_to_half(model, inputs, lambda pruned, plan: train_step(pruned, inputs), seeds=(0, 1))


def prune_by_torch_pruning(
    model: nn.Module, inputs: torch.Tensor, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Prunes by torch-pruning's high-level pruner, as in its guide."""
    import torch_pruning as tp

    dense, before = counted_flops(model, inputs), sum(p.numel() for p in model.parameters())
    start = clock()
    classes = model.num_classes
    ignored = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    pruner = tp.pruner.BasePruner(
        model, inputs, tp.importance.RandomImportance(), pruning_ratio=CHANNELS, ignored_layers=ignored
    )
    pruner.step()
    seconds = clock() - start
    with torch.no_grad():
        model(inputs)
    if sum(p.numel() for p in model.parameters()) == before:
        raise RuntimeError("nothing was removed")
    train_step(model, inputs)
    return {"seconds": seconds, "flops": dense, "kept": counted_flops(model, inputs) / dense}


def train_step(model: nn.Module, inputs: torch.Tensor) -> None:
    """A forward and a backward pass in training mode, on two images.

    Raises:
        RuntimeError: there are no gradients, or one is not finite.
    """
    from sirfp.network.forward import tensors

    model.train()
    output = model(torch.cat([inputs, inputs.flip(-1)]))
    sum(t.float().square().mean() for _, t in tensors(output) if t.is_floating_point()).backward()
    check_gradients(model)
    model.eval()


if __name__ == "__main__":
    raise SystemExit(main())
