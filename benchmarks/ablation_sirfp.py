"""What each of SIRFP's choices is worth: the study `studies/ablation.yaml`, as one table against the configured method.

    python benchmarks/ablation_sirfp.py [--study studies/ablation.yaml] [--folder FOLDER] [--table docs/ablation.md]

Every row is a pruning of the same dense network with one choice changed: METHOD's redundancy (spatial or pooled, L1 or
cosine, raw or per position), edge term, moving average, coupled layers, bias compensation, search, steps, importance on
the vertices; and rivals to hold them against. Runs that are done are not run again, so it can be cut off. `--report`
runs nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sirfp.cli import main as sirfp
from sirfp.study import grid

HEAD = """
| choice | changed keys | right after the last cut | fine-tuned | against `{first}` | FLOPs kept | parameters kept |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--study", type=Path, default=root / "studies" / "ablation.yaml")
    parser.add_argument("--folder", help="where the runs go, in place of the study's own")
    parser.add_argument("--report", action="store_true", help="run nothing: the table of what is done")
    parser.add_argument("--table", type=Path, help="also add the table to this file")
    args = parser.parse_args()
    where = ["--folder", args.folder] if args.folder else []
    code = sirfp(["study", str(args.study), *where, *(["--report"] if args.report else [])])
    if code == 2:
        return code
    study = grid.load(args.study, args.folder)
    shown = tables(study, json.loads((study.folder / "results.json").read_text())["rows"])
    print(shown)
    if args.table:
        with args.table.open("a") as file:
            file.write(shown)
    return code


def tables(study: grid.Study, rows: list[dict]) -> str:
    """One Markdown table for each task and model; the first criterion of the study is what others are held against."""
    changed: dict[tuple, str] = {}
    for job in study.cells:
        base = next(other for other in study.cells if (other.task, other.model) == (job.task, job.model))
        keys = [f"`{key} {value}`" for key, value in job.options if dict(base.options).get(key) != value]
        changed.setdefault((job.task, job.model, job.criterion), ", ".join(keys))
    text = ""
    for task, model in dict.fromkeys((job.task, job.model) for job in study.cells):
        mine = [row for row in rows if (row["task"], row["model"]) == (task, model)]
        pruned = [row for row in mine if row["budget"] is not None and row["budget"] < 1]
        dense = next((row["mean"] for row in mine if row["budget"] is None), float("nan"))
        if not pruned:
            continue
        text += f"\n{task}, {model}: {pruned[0]['metric']}, dense {dense:.1f}\n" + HEAD.format(
            first=pruned[0]["criterion"]
        )
        for row in pruned:
            values = row["cut"], row["mean"], row["mean"] - pruned[0]["mean"]
            shown = " | ".join(f"{v:.1f}" for v in values[:2]) + f" | {values[2]:+.1f}"
            shares = f"{row['flops_kept']:.3f} | {row['params_kept']:.3f}"
            keys = changed[task, model, row["criterion"]]
            text += f"| {row['criterion']} | {keys} | {shown} | {shares} |\n"
    return text


if __name__ == "__main__":
    raise SystemExit(main())
