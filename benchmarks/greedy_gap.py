"""Compares the greedy clique with local search, exact sets and a bound, on the edge matrices of a trained network.

    python benchmarks/greedy_gap.py --config-file CONFIG --weights dense.safetensors --images FOLDER [--table FILE.md]

Every layer's matrix is SIRFP's, averaged over a few batches of images. A share `--keep` of a layer's channels is kept:
chosen at random, by greedy removal (EHGP), by local search that starts from the greedy set, and by the best of several
local searches from random sets. They are compared with a value that no set exceeds (`sirfp.clique.bound`). Layers of
up to 32 channels, and random parts of 32 channels of larger layers, are solved exactly.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from subjects import machine

from sirfp import clique
from sirfp.channels import find_groups
from sirfp.hooks.redundancies import redundancies
from sirfp.redundancy import edge_weights
from sirfp.sources.source import from_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="the trained network, dense.safetensors of a run")
    parser.add_argument("--images", required=True, help="a folder of images")
    parser.add_argument("--batches", type=int, default=4, help="of 8 images (default 4)")
    parser.add_argument("--keep", type=float, default=0.6, help="share of the channels that are kept (default 0.6)")
    parser.add_argument("--starts", type=int, default=10, help="local searches from random sets (default 10)")
    parser.add_argument("--parts", type=int, default=5, help="random parts of a layer solved exactly (default 5)")
    parser.add_argument("--largest", type=int, default=700, help="channels of the largest measured layer (default 700)")
    parser.add_argument("--table", type=Path, help="add the Markdown table to this file")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    source = from_config(args.config_file, weights=args.weights)
    names = [g.name for g in find_groups(source.model, source.example(), trial=False) if g.size <= args.largest]
    batches = list(source.batches(args.images, args.batches, 8))
    rows = []
    for name, matrix in redundancies(source.model, source.example(), names, batches).items():
        rows.append({"layer": name, **gap(edge_weights(matrix), args.keep, args.starts, args.parts)})
        print(line(rows[-1]), file=sys.stderr, flush=True)
    shown = table(rows)
    print(shown)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "machine": machine()}, indent=1))
    if args.table:
        with args.table.open("a") as file:
            file.write(f"\n## {args.config_file}\n\n{shown}\n")
    return 0


def gap(weights: torch.Tensor, share: float, starts: int, parts: int) -> dict[str, float | int | None]:
    """The values of the sets that each method finds for one matrix, and the upper bound."""
    size, generator = len(weights), torch.Generator().manual_seed(0)
    keep = max(2, round(share * size))
    start = time.perf_counter()
    order, _ = clique.greedy(weights, size - keep)
    seconds = time.perf_counter() - start
    left = torch.ones(size, dtype=torch.bool)
    left[order] = False
    kept = left.nonzero().flatten()
    chance = [torch.randperm(size, generator=generator)[:keep] for _ in range(max(starts, 20))]
    whole = size <= clique.EXACT_LIMIT
    return {
        "channels": size,
        "kept": keep,
        "seconds": seconds,
        "random": mean(clique.value(weights, some) for some in chance),
        "greedy": clique.value(weights, kept),
        "local": clique.local_search(weights, kept)[1],
        "starts": max(clique.local_search(weights, some)[1] for some in chance[:starts]),
        "exact": clique.exact(weights, keep)[1] if whole else None,
        "bound": clique.bound(weights, keep),
        **({} if whole else in_parts(weights, share, parts, generator)),
    }


def in_parts(weights: torch.Tensor, share: float, parts: int, generator: torch.Generator) -> dict[str, float]:
    """The distances of greedy and local search below exact sets of random parts, in per cent of the exact value."""
    size, keep = clique.EXACT_LIMIT, round(share * clique.EXACT_LIMIT)
    greedy, local = [], []
    for _ in range(parts):
        some = torch.randperm(len(weights), generator=generator)[:size]
        part = weights[some][:, some]
        order, _ = clique.greedy(part)
        kept = order[size - keep :]
        most = clique.exact(part, keep)[1]
        greedy.append(below(clique.value(part, kept), most))
        local.append(below(clique.local_search(part, kept)[1], most))
    return {"greedy_of_parts": mean(greedy), "local_of_parts": mean(local)}


def below(value: float, most: float) -> float:
    """The distance of a value below another, in per cent of the other."""
    return 100 * (most - value) / max(abs(most), 1e-30)


def line(row: dict) -> str:
    """A row of the table: the distance of each method below the best known set and below exact sets."""
    best = row["exact"] if row["exact"] is not None else max(row["local"], row["starts"])
    ways = [below(row[way], best) for way in ("random", "greedy", "local", "starts")]
    parts = ["exact", "exact"] if row["exact"] is not None else [row["greedy_of_parts"], row["local_of_parts"]]
    figures = [*ways, *parts, below(best, row["bound"])]
    shown = " | ".join(f if isinstance(f, str) else f"{f:.2f}" for f in figures)
    return f"| {row['layer']} | {row['channels']} | {row['kept']} | {shown} |"


def table(rows: list[dict]) -> str:
    """The Markdown table; its last row is the mean over the layers."""
    head = [
        "| layer | channels | kept | random | greedy | greedy + local search | local searches from random sets "
        "| parts: greedy | parts: local search | best set below the bound |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    bests = [row["exact"] if row["exact"] is not None else max(row["local"], row["starts"]) for row in rows]
    ways = [
        mean(below(r[way], b) for r, b in zip(rows, bests, strict=True))
        for way in ("random", "greedy", "local", "starts")
    ]
    parts = [r for r in rows if r["exact"] is None]
    ways += [mean(r[key] for r in parts) if parts else 0.0 for key in ("greedy_of_parts", "local_of_parts")]
    ways.append(mean(below(b, r["bound"]) for r, b in zip(rows, bests, strict=True)))
    last = f"| **mean of {len(rows)} layers** | | | " + " | ".join(f"{value:.2f}" for value in ways) + " |"
    return "\n".join([*head, *map(line, rows), last])


if __name__ == "__main__":
    raise SystemExit(main())
