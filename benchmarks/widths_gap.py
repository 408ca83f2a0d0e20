"""Compares widths chosen by loss curves with the exact optimum, and ways to interpolate measured curves.

    python benchmarks/widths_gap.py [--curves FILE.json] [--table docs/widths_gap.md]

Small problems are chains of layers, solved exactly by trying every combination of widths. On timm networks each group
has a few widths, and the exact optimum is that of a mixed-integer linear program (HiGHS). Curves are random: either
smooth powers of the removed share, or rough, with jumps at random widths. Simple ways to choose widths are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from sirfp.budget import knapsack
from sirfp.budget.allocation import EXACT, PROMISED
from sirfp.budget.curve import Curve
from sirfp.budget.exchanges import Knapsack
from sirfp.budget.width_cost import WidthCost, of_products
from sirfp.channels import find_groups

NETWORKS = ("resnet18", "tf_efficientnet_lite0", "mobilevit_xxs")
SHARES = (0.8, 0.5, 0.3)
WAYS = ("curves", "one price for cost", "one price for channels", "even shares")
SCALES = {
    "the loss": (lambda y: y, lambda y: y),
    "its square root": (np.sqrt, np.square),
    "its cube root": (np.cbrt, lambda y: y**3),
    "its logarithm (+ 0.001)": (lambda y: np.log(y + 1e-3), lambda y: np.exp(y) - 1e-3),
}
"""{scale on which losses are interpolated linearly: (to it, back from it)}."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chains", type=int, default=50, help="chains of each length and kind of curve (default 50)")
    parser.add_argument("--seeds", type=int, default=1, help="sets of curves of each network (default 1)")
    parser.add_argument("--levels", type=int, default=8, help="widths of each group of a network (default 8)")
    parser.add_argument("--curves", type=Path, help="measured curves with many widths, a JSON list")
    parser.add_argument("--table", type=Path, help="add the Markdown tables to this file")
    args = parser.parse_args()
    shown = [gap_table([*chains(args.chains), *networks(args.seeds, args.levels)])]
    if args.curves:
        shown.append(scale_table([Curve.from_json(one) for one in json.loads(args.curves.read_text())]))
    print("\n\n".join(shown))
    if args.table:
        with args.table.open("a") as file:
            file.write("\n" + "\n\n".join(shown) + "\n")
    return 0


def chains(count: int) -> list[dict]:
    """Gaps on chains of two to five layers, six widths a group, of all combinations."""
    rows = []
    for groups, kind in itertools.product((2, 3, 4, 5), ("smooth", "rough")):
        gaps = []
        for seed in range(count):
            generator = np.random.default_rng([seed, groups])
            sizes = generator.integers(8, 64, groups)
            grids = [np.unique(np.maximum(1, np.arange(1, 7) * size // 6)) for size in sizes]
            sides = np.array([[groups, 0], *([g, g + 1] for g in range(groups - 1)), [groups - 1, groups]])
            factors = generator.lognormal(0, 1, groups + 1)
            cost = WidthCost(
                sides,
                np.append(np.zeros(groups), 3.0),
                np.vstack([np.eye(groups), np.zeros(groups)]),
                lambda lines, products, factors=factors: factors[lines] @ products,
            )
            problem = problem_of(grids, cost, generator.choice(SHARES), kind, generator)
            gaps.append(gaps_of(problem, of_all_combinations(problem)))
        rows.append({"what": f"chain of {groups + 1} layers", "kind": kind, "gaps": gaps})
        print(line(rows[-1]), flush=True)
    return rows


def networks(seeds: int, levels: int) -> list[dict]:
    """Gaps on timm networks, for FLOPs and parameters."""
    rows = []
    for name in NETWORKS:
        found = find_groups(timm.create_model(name).eval(), torch.randn(1, 3, 64, 64), trial=False)
        grids = [np.unique(np.maximum(1, np.arange(1, levels + 1) * g.size // levels)) for g in found]
        for quantity, kind in itertools.product(("FLOPs", "parameters"), ("smooth", "rough")):
            cost = of_products(found.cost.operations if quantity == "FLOPs" else found.cost.parameters, found)
            gaps, seconds = [], 0.0
            for seed, share in itertools.product(range(seeds), SHARES):
                problem = problem_of(grids, cost, share, kind, np.random.default_rng(seed))
                start = time.process_time()
                knapsack.solve(problem)
                seconds = max(seconds, time.process_time() - start)
                gaps.append(gaps_of(problem, exact(problem)))
            what = f"{name}, {len(grids)} groups, {quantity}"
            rows.append({"what": what, "kind": kind, "gaps": gaps, "seconds": seconds})
            print(line(rows[-1]), flush=True)
    return rows


def problem_of(grids: list, cost: WidthCost, share: float, kind: str, generator: np.random.Generator) -> Knapsack:
    """A problem with random losses; the budget lies between the smallest and the dense cost."""
    losses = []
    for grid in grids:
        removed = 1 - grid / grid[-1]
        loss = generator.lognormal(-2, 1.5) * removed ** generator.uniform(0.7, 4)
        if kind == "rough":
            loss = np.sort(loss * generator.lognormal(0, 1, len(grid)))[::-1]
        losses.append(loss)
    least, whole = (cost(np.array([grid[end] for grid in grids], dtype=float)) for end in (0, -1))
    return Knapsack(grids, losses, cost, least + share * (whole - least), EXACT, PROMISED)


def gaps_of(problem: Knapsack, best: float) -> dict[str, float]:
    """How far the loss of each way is above the least one, in per cent."""
    dense = np.array([len(grid) - 1 for grid in problem.grids])
    plans = {
        "curves": knapsack.solve(problem),
        "one price for cost": knapsack.by_price(problem, dense),
        "one price for channels": knapsack.at_fixed_costs(problem, problem.grids),
        "even shares": knapsack.even(problem),
    }
    return {way: 100 * (problem.loss(at) / best - 1) for way, at in plans.items()}


def of_all_combinations(problem: Knapsack) -> float:
    """The least loss of all combinations of widths, tried in the order of their losses."""
    every = np.array(list(itertools.product(*(range(len(grid)) for grid in problem.grids))))
    losses = sum(each[every[:, g]] for g, each in enumerate(problem.losses))
    return next(float(losses[i]) for i in np.argsort(losses) if problem.fits(every[i]))


def exact(problem: Knapsack, seconds: float = 120.0) -> float:
    """The least loss, to 0.01%, by a mixed-integer linear program, for costs with at most two groups in a product.

    A binary variable for each width of a group; for each pair of groups that meet in a layer the product of each such
    variable with the other group's width, as a share of its range.
    """
    grids, groups = problem.grids, len(problem.grids)
    base = problem.widths(np.zeros(groups, dtype=int))
    first, sizes = problem.cost(base), problem.cost.sizes(base)
    alone = [problem.cost.along(sizes, g, grid - grid[0]) for g, grid in enumerate(grids)]
    pairs = []
    for g, h in itertools.combinations(range(groups), 2):
        both = base.copy()
        both[[g, h]] = grids[g][-1], grids[h][-1]
        together = problem.cost(both) - first - alone[g][-1] - alone[h][-1]
        if together > 1e-9 * problem.budget:
            pairs.append((g, h, together))
    ends = np.cumsum([0, *map(len, grids)])
    count = ends[-1] + sum(len(grids[g]) for g, _, _ in pairs)
    objective, cost = np.zeros(count), np.zeros(count)
    objective[: ends[-1]], cost[: ends[-1]] = np.concatenate(problem.losses), np.concatenate(alone)
    rows: list[tuple[list[int], list[float], float, float]] = [
        (list(range(ends[g], ends[g + 1])), [1.0] * len(grids[g]), 1.0, 1.0) for g in range(groups)
    ]
    at = int(ends[-1])
    for g, h, together in pairs:
        products = list(range(at, at + len(grids[g])))
        ranges = [(grid - grid[0]) / max(1, grid[-1] - grid[0]) for grid in (grids[g], grids[h])]
        cost[products] = together * ranges[0]
        rows += [([p, int(ends[g]) + i], [1.0, -1.0], -np.inf, 0.0) for i, p in enumerate(products)]
        other = list(range(ends[h], ends[h + 1]))
        rows.append((products + other, [1.0] * len(products) + (-ranges[1]).tolist(), 0.0, 0.0))
        at += len(products)
    matrix = lil_matrix((len(rows) + 1, count))
    for i, (columns, values, _, _) in enumerate(rows):
        matrix[i, columns] = values
    left = problem.budget - first
    matrix[len(rows), :] = cost / left
    low, high = ([*(row[k] for row in rows), bound] for k, bound in ((2, -np.inf), (3, 1.0)))
    integer = (np.arange(count) < ends[-1]).astype(int)
    result = milp(
        objective, constraints=LinearConstraint(matrix.tocsr(), low, high), integrality=integer, bounds=Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": 1e-4},
    )  # fmt: skip
    if not result.success:
        raise RuntimeError(f"the exact optimum was not found: {result.message}")
    return float(result.fun)


def gap_table(rows: list[dict]) -> str:
    """The Markdown table of gaps."""
    head = "| problem | losses | problems | exact | " + " | ".join(WAYS) + " | seconds |"
    return "\n".join([head, "| --- | --- |" + " ---: |" * (len(WAYS) + 3), *map(line, rows)])


def line(row: dict) -> str:
    """A row of the table: the share solved exactly, then the mean gap of each way and, for curves, the largest."""
    means = {way: np.mean([gaps[way] for gaps in row["gaps"]]) for way in WAYS}
    ours = np.array([gaps["curves"] for gaps in row["gaps"]])
    cells = [f"{means['curves']:.2f} (most {ours.max():.1f})", *(f"{means[way]:.0f}" for way in WAYS[1:])]
    seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
    solved = f"{100 * np.mean(ours < 0.02):.0f}%"
    return f"| {row['what']} | {row['kind']} | {len(ours)} | {solved} | {' | '.join(cells)} | {seconds} |"


def scale_table(curves: list[Curve]) -> str:
    """The Markdown table of how well each scale gives the widths that are left out, with every second one known."""
    lines = ["| interpolated linearly | error of the logarithm | error | mean error |", "| --- | ---: | ---: | ---: |"]
    for scale, (there, back) in SCALES.items():
        logs, errors = [], []
        for curve in (one.cleaned() for one in curves):
            widths, losses = np.array(curve.widths), np.array(curve.losses)
            known = np.arange(len(widths)) % 2 == (len(widths) - 1) % 2
            out = ~known & (widths > widths[known][0])
            guess = back(np.interp(widths[out], widths[known], there(losses[known])))
            logs.append(np.log((guess + 1e-3) / (losses[out] + 1e-3)))
            errors.append(guess - losses[out])
        log, error = np.concatenate(logs), np.concatenate(errors)
        rms = [np.sqrt((values**2).mean()) for values in (log, error)]
        lines.append(f"| {scale} | {rms[0]:.3f} | {rms[1]:.3f} | {error.mean():+.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
