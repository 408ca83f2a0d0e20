"""Tables of the study `studies/ablation.yaml`: the effect of each choice in SIRFP.

    python benchmarks/ablation_sirfp.py [--study studies/ablation.yaml] [--folder FOLDER] [--table docs/ablation.md]

Every row is a pruning of the same dense network with one choice changed: redundancy (spatial or pooled, L1 or cosine,
raw or per position), edge term, moving average, coupled layers, search; importance on the vertices, refitting, bias
compensation, steps. Finished runs are not run again, so the command can be interrupted. `--report` runs nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sirfp.cli import main as sirfp
from sirfp.study import grid

HEAD = """
| choice | changed keys | right after the last cut | fine-tuned | against | FLOPs kept | parameters kept |
| --- | --- | ---: | ---: | --- | ---: | ---: |
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--study", type=Path, default=root / "studies" / "ablation.yaml")
    parser.add_argument("--folder", help="folder of the runs, instead of the study's own")
    parser.add_argument("--report", action="store_true", help="run nothing: print the table of the finished runs")
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
    """One Markdown table for each task and model; `a-b` is compared with `a`, others with the first row."""
    text = ""
    for task, model in dict.fromkeys((job.task, job.model) for job in study.cells):
        jobs = {job.criterion: dict(job.options) for job in study.cells if (job.task, job.model) == (task, model)}
        mine = [row for row in rows if (row["task"], row["model"]) == (task, model)]
        pruned = {row["criterion"]: row for row in mine if row["budget"] is not None and row["budget"] < 1}
        dense = next((row["mean"] for row in mine if row["budget"] is None), float("nan"))
        if not pruned:
            continue
        text += f"\n{task}, {model}: {next(iter(pruned.values()))['metric']}, dense {dense:.1f}\n{HEAD}"
        for name, row in pruned.items():
            base = base_of(name, list(jobs))
            keys = ", ".join(f"`{key} {value}`" for key, value in jobs[name].items() if jobs[base].get(key) != value)
            change = f"{row['mean'] - pruned[base]['mean']:+.1f} ({base})" if base != name and base in pruned else ""
            shown = f"{row['cut']:.1f} | {row['mean']:.1f} | {change}"
            text += f"| {name} | {keys} | {shown} | {row['flops_kept']:.3f} | {row['params_kept']:.3f} |\n"
    return text


def base_of(name: str, names: list[str]) -> str:
    """The row to compare with: the longest other name that begins `name` before a dash; else the first."""
    return max((other for other in names if name.startswith(f"{other}-")), key=len, default=names[0])


if __name__ == "__main__":
    raise SystemExit(main())
