"""Runs every benchmark that needs no data, one after the other, and says which kept their bounds.

    python benchmarks/run.py [--output output/benchmarks]

Each prints its table; its JSON goes to a file of its name in the output folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = {
    "scoring": ["scoring.py"],
    "planning": ["planning.py"],
    "planning-resnet50": ["planning.py", "--model", "resnet50"],
    "loop-overhead": ["loop_overhead.py"],
    "planning-mask-rcnn": ["planning.py", "--model", "mask-rcnn"],
    "accumulation-float32": ["accumulation.py"],
    "accumulation-bfloat16": ["accumulation.py", "--precision", "bfloat16"],
    "accumulation-kernel": ["accumulation_kernel.py"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, command in BENCHMARKS.items():
        print(f"== {name}: {' '.join(command)}", flush=True)
        script = [sys.executable, str(Path(__file__).parent / command[0]), *command[1:], "--json"]
        done = subprocess.run(script, stdout=subprocess.PIPE, text=True)
        try:
            result = json.loads(done.stdout)
        except ValueError:
            result = {}
        (args.output / f"{name}.json").write_text(done.stdout)
        print(json.dumps({k: v for k, v in result.items() if k not in ("machine", "widths", "rows")}, indent=1))
        if done.returncode:
            failed.append(name)
    print("all within bounds" if not failed else f"not within bounds: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
