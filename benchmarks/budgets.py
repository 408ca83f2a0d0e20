"""How exactly budgets of FLOPs and parameters are met by the networks of the two prunability tables.

    python benchmarks/budgets.py [--all] [--networks NAME ...] [--results output/budgets.jsonl] [--json]

Every network is pruned by random scores to a share of its FLOPs and of its parameters, once with any width and once
with multiples of 8. The share is half, or half of what can be removed if the smallest plan keeps more than half.
Bound, with any width: at most 0.5% below the budget, and not above it. By default some of the networks are measured,
with `--all` all of them, each in its own process. Networks in the results file are not run again. Exit code 1 if the
bound is not met.
"""

from __future__ import annotations

import argparse
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import prunability_detectron2
import timm
import torch
from prunability import add_row, in_own_process, one_line, read_rows
from subjects import machine

from sirfp.budget.allocation import smallest
from sirfp.budget.decision import decide
from sirfp.budget.limits import Limits
from sirfp.budget.target import TARGETS
from sirfp.channels import find_groups
from sirfp.criteria import build_criterion

SLICE = (
    "test_resnet", "test_byobnet", "test_vit", "test_convnext", "resnet18", "mobilenetv3_small_050", "densenet121",
    "ghostnet_050", "regnetx_002", "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "Misc/semantic_R_50_FPN_1x.yaml",
)  # fmt: skip
DOCS = Path(__file__).resolve().parents[1] / "docs"
BOUND = 0.005
ROUNDING = 1e-12  # tolerance of a share, so that a plan that meets the budget exactly is not above it
MULTIPLES = (1, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--all", action="store_true", help="every network of the two tables")
    parser.add_argument("--networks", nargs="*", help="these networks, with or without --all")
    parser.add_argument("--results", type=Path, help="file of rows; networks in it are not measured again")
    parser.add_argument("--seconds", type=int, default=600, help="limit for one network (default %(default)s)")
    parser.add_argument("--memory", type=float, default=12, help="limit in GiB (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time (default %(default)s)")
    args = parser.parse_args()
    facts = machine()
    torch.set_num_threads(1)  # a process that has used several threads cannot be forked safely
    rows = {row["network"]: row for row in (read_rows(args.results) if args.results else [])}
    names = args.networks or (all_networks() if args.all else SLICE)

    def row_of(name: str) -> dict[str, Any]:
        limits = {"seconds": args.seconds, "threads": 1, "memory": args.memory}
        return {"network": name, **in_own_process(lambda: {"plans": measure(name)}, **limits)}

    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(row_of, [name for name in names if name not in rows]):
            rows[row["network"]] = row
            if args.results:
                add_row(args.results, row)
            if not args.json:
                print(line(row), flush=True)
    asked = [rows[name] for name in names]
    result = summary(asked) | {"machine": facts, "rows": asked}
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        print({key: value for key, value in result.items() if key != "rows"})
    return 0 if result["within_bounds"] else 1


def all_networks() -> list[str]:
    """The networks of both tables in docs/."""
    timm_rows, zoo_rows = (table_rows(DOCS / f"prunability_{kind}.md") for kind in ("timm", "detectron2"))
    return [*(row[1] for row in timm_rows), *(row[0] for row in zoo_rows)]


def table_rows(page: Path) -> list[list[str]]:
    """The cells of the rows of a page's table."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def measure(name: str) -> list[dict[str, Any]]:
    """One network's plans, each with its budget and the share that it keeps."""
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    if name.endswith((".yaml", ".py")):
        model, inputs = prunability_detectron2.build(name)
    else:
        model = timm.create_model(name).eval()
        inputs = torch.randn(1, *model.default_cfg["input_size"])
    found = find_groups(model, inputs)
    criterion = build_criterion("random", model, found.groups, seed=0)
    plans = []
    for quantity in ("flops", "params"):
        for multiple in MULTIPLES:
            kind, limits = TARGETS[quantity], Limits(partitions=(), round_to=multiple)
            cost = kind().cost(found)
            least = cost(smallest(found, limits)) / cost()
            share = max(0.5, (1 + least) / 2)
            plan = {"quantity": quantity, "round_to": multiple, "asked": share, "least": least}
            try:
                choice = decide(model, inputs, found, criterion, kind(share), limits)
                plan["off"] = cost(choice.keep) / cost() / share - 1
            except Exception as error:
                plan["error"] = one_line(error)
            plans.append(plan)
    return plans


def shortfall(row: dict[str, Any], multiple: int) -> float:
    """The largest distance of a network's plans below the budget, relative to it; infinite if one is above."""
    if row.get("error") or any(plan.get("error") for plan in row["plans"]):
        return float("inf")
    gaps = [-plan["off"] for plan in row["plans"] if plan["round_to"] == multiple]
    return max(0.0, *gaps) if min(gaps) >= -ROUNDING else float("inf")


def summary(rows: Any) -> dict[str, Any]:
    """How many networks meet the bound, and the worst; networks that lack a library are counted separately."""
    rows = list(rows)
    able = [row for row in rows if not str(row.get("error", "")).startswith(("InputError", "ModuleNotFound"))]
    result: dict[str, Any] = {"networks": len(able), "cannot_run_here": len(rows) - len(able)}
    for multiple in MULTIPLES:
        gaps = {row["network"]: shortfall(row, multiple) for row in able}
        result[f"round_to_{multiple}"] = {
            "within_half_a_percent": sum(gap <= BOUND for gap in gaps.values()),
            "worst": max(gaps.values(), default=0.0),
            "beyond": {name: gap for name, gap in gaps.items() if gap > BOUND},
        }
    result["within_bounds"] = not result["round_to_1"]["beyond"]
    return result


def line(row: dict[str, Any]) -> str:
    """One network in words."""
    if row.get("error"):
        return f"{row['network']:60} {row['error']}"
    cells = [plan.get("error") or f"{100 * plan['off']:+.2f}%" for plan in row["plans"]]
    return f"{row['network']:60} {' '.join(cells)}"


if __name__ == "__main__":
    raise SystemExit(main())
