"""Runs all benchmarks that need no data set, one after the other, and compares each figure with its bound.

    python benchmarks/run.py [--only NAME ...] [--quick] [--again] [--output output/benchmarks] [--json | --table]

Each result is stored in a JSON file of the output folder as soon as it is measured, so that an interrupted run
continues where it stopped (`--again` measures everything again). budgets-all takes long and runs only if `--only`
names it; its results are stored after each network. `--quick` checks that everything works, with fewer repeats and
smaller subjects, and has its own file. `--table` and `--json` print the stored results and measure nothing. Exit code
1 if a bound is not met or a benchmark failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from figures import Figure, figures, page

HERE = Path(__file__).parent
WIDTHS = ["--round-to", "1", "8", "16", "--runtimes", "compiled", "onnxruntime"]
BENCHMARKS: dict[str, tuple[list[str], list[str]]] = {
    "scoring": (["scoring.py"], ["--repeats", "2"]),
    "accumulation-segmentor": (["accumulation.py"], ["--rounds", "2"]),
    "accumulation-segmentor-bfloat16": (["accumulation.py", "--precision", "bfloat16"], ["--rounds", "2"]),
    "accumulation-classifier": (["accumulation.py", "--model", "resnet50"], ["--rounds", "2"]),
    "accumulation-detector": (["accumulation.py", "--model", "retinanet"], ["--rounds", "2"]),
    "accumulation-kernel": (["accumulation_kernel.py"], ["--memory-limit", "0.1", "--repeats", "1"]),
    "loss-curves": (["loss_curves.py"], ["--images", "4", "--models", "lite0"]),
    "loop-overhead": (["loop_overhead.py"], ["--rounds", "2"]),
    "planning-deeplab": (["planning.py"], ["--repeats", "2"]),
    "planning-resnet50": (["planning.py", "--model", "resnet50"], ["--repeats", "2"]),
    "planning-mask-rcnn": (["planning.py", "--model", "mask-rcnn"], ["--repeats", "2"]),
    "planning-memory-mask-rcnn": (["planning_memory.py"], []),
    "planning-memory-retinanet": (["planning_memory.py", "--model", "retinanet"], []),
    "planning-peers": (["planning_peers.py"], ["--repeats", "1", "--models", "resnet50", "regnetx_002", "retinanet"]),
    "budgets": (["budgets.py", "--jobs", "2"], ["--networks", "test_resnet", "test_vit", "resnet18"]),
    "latency-resnet50": (
        ["latency_realised.py", "--models", "resnet50", *WIDTHS, "--repeats", "15"],
        ["--batches", "1", "--size", "64", "64", "--repeats", "3", "--runtimes", "eager", "onnxruntime"],
    ),
    "latency-deeplab": (
        ["latency_realised.py", "--models", "deeplab", *WIDTHS],
        ["--batches", "1", "--size", "64", "64", "--repeats", "3", "--runtimes", "eager", "onnxruntime"],
    ),
    "latency-profile": (
        ["latency_profile.py"],
        ["--models", "resnet18", "--size", "64", "64", "--repeats", "3", "--runtimes", "onnxruntime", "channels-last"],
    ),
    "startup": (["startup.py", "--repeats", "3"], ["--repeats", "1", "--configs", "scenes"]),
    "budgets-all": (
        ["budgets.py", "--all", "--jobs", "2", "--results", "OUTPUT/budgets.jsonl"],
        ["--networks", "test_resnet", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"],
    ),
}
"""{name: (command, options that `--quick` adds)}; OUTPUT stands for the output folder."""
LONG = ("budgets-all",)
"""Benchmarks that take longer than all others together."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks"))
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller subjects")
    parser.add_argument("--again", action="store_true", help="measure again what is stored already")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print the stored results as one JSON object")
    shown.add_argument("--table", action="store_true", help="print the stored results as a page of Markdown")
    args = parser.parse_args()
    file = args.output / ("quick.json" if args.quick else "results.json")
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    names = args.only or [name for name in BENCHMARKS if name not in LONG or args.json or args.table]
    if not (args.json or args.table):
        for name in names:
            if args.again or name not in kept:
                kept[name] = run_benchmark(name, args.output, args.quick)
                args.output.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(kept, indent=1))
                for figure in figures(name, kept[name]["result"]):
                    print(figure.line(), flush=True)
    kept = {name: kept[name] for name in BENCHMARKS if name in kept and name in names}
    found = {name: figures(name, entry["result"]) for name, entry in kept.items()}
    if args.json:
        rows = {name: [figure.to_dict() for figure in rows] for name, rows in found.items()}
        print(json.dumps({"figures": rows, "benchmarks": kept}, indent=1))
    elif args.table:
        print(page(kept, found), end="")
    return 0 if kept and all(met(rows) for rows in found.values()) else 1


def met(rows: list[Figure]) -> bool:
    """Whether there are figures and all meet their bounds."""
    return bool(rows) and all(figure.met is not False for figure in rows)


def run_benchmark(name: str, output: Path, quick: bool) -> dict[str, Any]:
    """Runs a benchmark in its own process.

    Returns:
        Its command, its result, the seconds it took, and how many cores other work kept busy before it.
    """
    command, less = BENCHMARKS[name]
    words = [word.replace("OUTPUT", str(output)) for word in (*command, *(less if quick else []))]
    print(f"== {name}: python benchmarks/{' '.join(words)}", flush=True)
    busy, start = busy_cores(), time.perf_counter()
    script = [sys.executable, "-W", "ignore", str(HERE / words[0]), *words[1:], "--json"]
    done = subprocess.run(script, stdout=subprocess.PIPE, text=True)
    try:
        result = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        result = {"failed": f"ended with {done.returncode} and no JSON"}
    facts = {"seconds": time.perf_counter() - start, "busy_cores": busy}
    return {"command": f"python benchmarks/{' '.join(words)}", **facts, "result": result}


def busy_cores(seconds: float = 2.0) -> float | None:
    """How many cores other work keeps busy, measured over `seconds`; None if the system does not say (not Linux)."""
    try:
        (idle, total), _ = ticks(), time.sleep(seconds)
        later = ticks()
    except OSError:
        return None
    return (1 - (later[0] - idle) / max(1, later[1] - total)) * (os.cpu_count() or 1)


def ticks() -> tuple[int, int]:
    """Ticks of all cores since the system started: (idle or waiting for disks, total)."""
    values = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return values[3] + values[4], sum(values)


if __name__ == "__main__":
    raise SystemExit(main())
