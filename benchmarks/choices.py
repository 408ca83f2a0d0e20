"""What SIRFP's choices are worth: one pruning from the same dense network, a short fine-tuning, for each of them.

    python benchmarks/choices.py --config-file CONFIG --weights dense.safetensors [--output FOLDER] [KEY VALUE ...]

Every row is a run of projects/segmentation/train_net.py from the same weights, with the same seed and schedule: some
iterations of statistics, one cut, some of fine-tuning. Rows that are done are skipped, so it can be cut off. Prints a
Markdown table of the first metric in SIRFP.METRICS, right after the cut and fine-tuned.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

TRAIN_NET = Path(__file__).resolve().parents[1] / "projects" / "segmentation" / "train_net.py"

CHOICES = {
    "as configured": [],
    "without bias compensation": ["SIRFP.BIAS_CORRECTION", "False"],
    "union of coupled layers": ["SIRFP.COUPLED", "union"],
    "self-similarity in the sum": ["SIRFP.SELF_SIMILARITY", "True"],
    "edge term 0.3": ["SIRFP.EDGE_WEIGHT", "0.3"],
    "cosine normalisation": ["SIRFP.NORMALIZE", "l2"],
    "raw redundancy, as the paper": ["SIRFP.PER_POSITION", "False"],
    "one partition": ["SIRFP.PARTITIONS", "[]"],
    "all positions": ["SIRFP.ACCUMULATE_STRIDE", "1"],
    "magnitude": ["SIRFP.CRITERION", "magnitude"],
    "random": ["SIRFP.CRITERION", "random"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="the dense network, dense.safetensors of a run")
    parser.add_argument("--output", type=Path, default=Path("output/choices"))
    parser.add_argument("--accumulate", type=int, default=20, help="iterations of statistics")
    parser.add_argument("--fine-tune", type=int, default=60, help="iterations after the cut")
    parser.add_argument("--only", nargs="*", default=list(CHOICES), choices=list(CHOICES), metavar="CHOICE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every run")
    args = parser.parse_args()
    schedule = {
        "SIRFP.START_ITER": 0, "SIRFP.STEPS": 1, "SIRFP.ACCUMULATE_ITERS": args.accumulate,
        "SOLVER.MAX_ITER": args.accumulate + args.fine_tune, "SOLVER.CHECKPOINT_PERIOD": 100000,
        "MODEL.WEIGHTS": args.weights, "MODEL.TIMM.WEIGHTS": "",
    }  # fmt: skip
    rows = []
    for name in args.only:
        folder = args.output / name.replace(" ", "-")
        result = folder / "pruning.json"
        if not result.exists():
            given = [str(word) for pair in schedule.items() for word in pair]
            command = [sys.executable, str(TRAIN_NET), "--config-file", args.config_file, "--num-gpus", "0", *given]
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "stdout.txt", "w") as log:
                done = subprocess.run(
                    [*command, *CHOICES[name], *args.opts, "OUTPUT_DIR", str(folder)],
                    stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_WAIT_POLICY": "passive"},
                )  # fmt: skip
            if done.returncode:
                print(f"{name}: failed, see {folder}/stdout.txt", file=sys.stderr)
                continue
        rows.append((name, json.loads(result.read_text())))
        print(f"{name}: done", file=sys.stderr, flush=True)
    metric = next(iter(rows[0][1]["pruned"]["metrics"]))
    print(f"| choice | FLOPs kept | parameters kept | {metric}: dense | right after the cut | fine-tuned |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, stages in rows:
        dense, cut, tuned = (stages[stage] for stage in ("dense", "pruned", "fine-tuned"))
        values = " | ".join(f"{stage['metrics'][metric]:.1f}" for stage in (dense, cut, tuned))
        share = f"{cut['flops'] / dense['flops']:.3f} | {cut['params'] / dense['params']:.3f}"
        print(f"| {name} | {share} | {values} |")
    return 0 if len(rows) == len(args.only) else 1


if __name__ == "__main__":
    raise SystemExit(main())
