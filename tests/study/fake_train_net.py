"""Stands for a project's train_net.py: writes what a run leaves, at once, and fails or waits where a file says so.

Beside it: `calls.txt` gets a line for each call; a run whose OUTPUT_DIR has a word of the file `fail` in it fails, of
`hang` stops after its first half and waits, of `crash` ends there by a segmentation fault, of `leave` ends well without
its results.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

here = Path(__file__).parent
words = sys.argv[1:]
assert words[0] == "--config-file" and words[2] == "--resume" and Path(words[1]).is_file()
options = dict(zip(words[3::2], words[4::2], strict=True))
out = Path(options["OUTPUT_DIR"])
with open(here / "calls.txt", "a") as file:
    file.write(json.dumps({"out": out.name, "options": options, "from": (out / "checkpoint").is_file()}) + "\n")


def told_to(what):
    file = here / what
    return file.is_file() and any(word in out.name for word in file.read_text().split())


def metrics(iteration, **more):
    with open(out / "metrics.json", "a") as file:
        file.write(json.dumps({"iteration": iteration, "total_loss": 1.0, **more}) + "\n")


if told_to("fail"):
    print("Traceback (most recent call last):\n  ...\nRuntimeError: <b>no luck</b>")
    sys.exit(1)
length, seed = int(options["SOLVER.MAX_ITER"]), int(options["SEED"])
if not (out / "checkpoint").is_file():
    metrics(length // 2)
    (out / "checkpoint").write_text("half")
if told_to("hang"):
    time.sleep(60)
if told_to("crash"):
    os.kill(os.getpid(), signal.SIGSEGV)
if told_to("leave"):
    sys.exit()
keep = float(options["SIRFP.KEEP_FLOPS"])
if keep == 1:
    score = 65.0 if "MODEL.WEIGHTS" in options else 60.0
    if "SIRFP.PLAN" in options:
        score = 40.0 + 10 * json.loads(Path(options["SIRFP.PLAN"]).read_text())["flops"][1] / 1000
    metrics(length, **{"task/score": score + seed})
    (out / "model_final.pth").write_text("dense weights")
    sys.exit()
assert Path(options["MODEL.WEIGHTS"]).read_text() == "dense weights"
name = options["SIRFP.CRITERION"]
score = {"sirfp": 50.0, "magnitude": 40.0, "random": 30.0}[name] + 10 * keep + 2 * seed
flops, params, channels = [1000, round(1000 * keep)], [100, round(90 * keep)], {"a": 8, "b": 16}
kept = {group: list(range(max(1, round(count * keep)))) for group, count in channels.items()}
rows = {
    "dense": {"metrics": {"task/score": 60.0}, "flops": flops[0], "params": params[0], "latency": 0.02},
    "pruned": {"metrics": {"task/score": 5.0}, "flops": flops[1], "params": params[1], "latency": 0.01},
    "fine-tuned": {"metrics": {"task/score": score, "task/odd": float("nan")}, "flops": flops[1], "params": params[1],
                   "latency": 0.01},
}  # fmt: skip
plan = {"format": 1, "criterion": name, "flops": flops, "params": params, "kept": kept, "channels": channels,
        "places": {group: [f"{group}.weight", 0] for group in kept}, "cuts": [], "new_biases": [], "widths": {},
        "frozen": {}}  # fmt: skip
(out / "pruning.json").write_text(json.dumps(rows))
(out / "plan.json").write_text(json.dumps(plan))
(out / "model_0000001.pth").write_text("a checkpoint that nothing needs later")
