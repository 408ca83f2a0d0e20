"""Times `import sirfp` and the start of `train_net.py` until its first iteration, and how much of it sirfp causes.

    python benchmarks/startup.py [--repeats 5] [--json]

Every time is that of a new process. The first process is left out, because it reads files from disk that the others
find in memory. The runs are of the segmentation project on a few embedded scenes: a DeepLabV3+ on a ResNet-18, and
DeepLabV3 on a ResNet-50. sirfp's part of the imports are the modules of sirfp and of the project (Python's `-X
importtime`). sirfp's part of the rest is everything except Detectron2's set-up, building network, optimizer and data
loaders, and Detectron2's own hooks. Bounds: 0.3 s for `import sirfp` after torch is imported; 2 s for sirfp's part of
the start of the first run. Exit code 1 if a bound is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1] / "projects" / "segmentation"
CONFIGS = {
    "scenes": ("scenes/deeplab_v3_plus_r18_sirfp.yaml",),
    "deeplab": ("camvid/deeplab_v3_R_50_os8.yaml", "base/recipe/prune_camvid.yaml"),
}
OURS = ("sirfp", "segmentation", "train_net")
IMPORT_BOUND, RUN_BOUNDS = 0.3, {"scenes": 2.0}
IMPORT = "import time, torch; s = time.perf_counter(); import sirfp; print(time.perf_counter() - s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    args = parser.parse_args()
    turns = range(args.repeats + 1)
    seconds = [float(python("-c", IMPORT).stdout) for _ in turns][1:]
    shares = [imports() for _ in turns][1:]
    ours, others = (statistics.median(share[key] for share in shares) for key in ("ours", "others"))
    with tempfile.TemporaryDirectory() as folder:
        make_data(folder)
        runs = {name: [started(name, folder, turn) for turn in turns][1:] for name in args.configs}
    result: dict[str, Any] = {
        "import_s": statistics.median(seconds),
        "imports_of_a_run_s": {"ours": ours, "others": others},
        "runs": {name: summary(each, ours) for name, each in runs.items()},
    }
    result["within_bounds"] = result["import_s"] < IMPORT_BOUND and all(
        run["ours_s"] < RUN_BOUNDS.get(name, float("inf")) for name, run in result["runs"].items()
    )
    from subjects import machine  # imported late, because it imports the modules that are measured

    result["machine"] = machine()
    print(json.dumps(result, indent=2) if args.json else in_words(result))
    return 0 if result["within_bounds"] else 1


def python(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python in a new process."""
    env = os.environ | environment
    return subprocess.run([sys.executable, "-W", "ignore", *words], env=env, capture_output=True, text=True, check=True)


def imports() -> dict[str, float]:
    """Seconds of importing `train_net`: in modules of sirfp and the project, and in all others."""
    words = ("-X", "importtime", "-c", f"import sys; sys.path.insert(0, {str(PROJECT)!r}); import train_net")
    found = {"ours": 0.0, "others": 0.0}
    for line in python(*words).stderr.splitlines():
        if line.startswith("import time:") and line.count("|") == 2:
            spent, _, name = line.removeprefix("import time:").split("|")
            if spent.strip().isdigit():
                found["ours" if name.strip().split(".")[0] in OURS else "others"] += int(spent) / 1e6
    return found


def make_data(folder: str) -> None:
    """Makes a few scenes."""
    code = "from sirfp.data.scenes import make_scenes; make_scenes(train=32, val=8)"
    python("-c", code, SIRFP_DATASETS=folder, DETECTRON2_DATASETS=folder)


def started(config: str, folder: str, turn: int) -> dict[str, Any]:
    """One start of a run in a new process: seconds in total, of imports, and of each phase after them."""
    output = str(Path(folder) / f"{config}{turn}")
    words = (__file__, "--until-first-iteration", repr(time.time()), config, output)
    lines = python(*words, SIRFP_DATASETS=folder, DETECTRON2_DATASETS=folder).stdout.splitlines()
    return json.loads(lines[-1])


def summary(runs: list[dict[str, Any]], imports_ours: float) -> dict[str, Any]:
    """Medians over the starts of one config; sirfp's part of the imports was measured separately."""
    middle = {key: statistics.median(run[key] for run in runs) for key in ("all", "imports")}
    phases = {name: statistics.median(run["phases"].get(name, 0.0) for run in runs) for name in runs[0]["phases"]}
    others = middle["imports"] - imports_ours + sum(s for name, s in phases.items() if not name.startswith("sirfp"))
    ours = middle["all"] - others
    return {"all_s": middle["all"], "imports_s": middle["imports"], "ours_s": ours, "phases_s": phases}


def in_words(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"import sirfp, torch being there: {result['import_s']:.3f} s (bound {IMPORT_BOUND})"]
    shares = result["imports_of_a_run_s"]
    lines.append(f"imports of train_net.py: {shares['ours']:.2f} s ours, {shares['others']:.2f} s of others")
    for name, run in result["runs"].items():
        lines.append(
            f"{name}: first iteration after {run['all_s']:.2f} s, {run['ours_s']:.2f} s of them ours"
            f"{f' (bound {RUN_BOUNDS[name]})' if name in RUN_BOUNDS else ''}; imports {run['imports_s']:.2f} s"
        )
        lines += [f"    {phase:40} {seconds:6.2f} s" for phase, seconds in run["phases_s"].items()]
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in result["machine"].items())])


class Stopwatch:
    """Time by phases; a phase within another is not counted in the outer one.

    Attributes:
        phases: {name: seconds}.
    """

    def __init__(self):
        self.phases: dict[str, float] = {}
        self._within = [0.0]

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Times all calls of a function of a module, class or object."""
        work: Callable = getattr(owner, name)

        def timed(*args, **kwargs):
            self._within.append(0.0)
            start = time.perf_counter()
            try:
                return work(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self.phases[phase] = self.phases.get(phase, 0.0) + spent - self._within.pop()
                self._within[-1] += spent

        setattr(owner, name, staticmethod(timed) if isinstance(owner, type) else timed)


def until_first_iteration(began: float, config: str, output: str) -> None:
    """Starts a run as `train_net.py` does, prints the times when its first iteration would begin, and exits."""
    sys.path.insert(0, str(PROJECT))
    import train_net
    from detectron2.data import DatasetCatalog

    from sirfp import engine

    imported, watch = time.time() - began, Stopwatch()

    class Trainer(train_net.SegmentationTrainer):
        def build_hooks(self):
            hooks = super().build_hooks()
            for hook in filter(None, hooks):
                kind = type(hook)
                ours = kind.__module__.startswith("sirfp")
                watch.watch(hook, "before_train", f"sirfp: {kind.__name__}" if ours else "Detectron2's hooks")
            return hooks

        def run_step(self):
            answer = {"all": time.time() - began, "imports": imported, "phases": watch.phases}
            print(json.dumps(answer), flush=True)
            os._exit(0)

    watch.watch(engine, "setup", "sirfp: config")
    watch.watch(Trainer, "check_data", "sirfp: check of the data")
    watch.watch(engine, "set_up", "logs and config file")
    watch.watch(DatasetCatalog, "get", "reading the data set's list")
    for name, phase in (("model", "network"), ("optimizer", "network"), ("train_loader", "data loaders")):
        watch.watch(Trainer, f"build_{name}", phase)
    words = [word for file in CONFIGS[config] for word in ("--config-file", str(PROJECT / "configs" / file))]
    words += ["OUTPUT_DIR", output, "MODEL.WEIGHTS", ""]
    words += ["DATASETS.TRAIN", "('scenes_sem_seg_train',)", "DATASETS.TEST", "('scenes_sem_seg_val',)"]
    engine.run(Trainer, train_net.add_segmentation_config, words)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--until-first-iteration"]:
        until_first_iteration(float(sys.argv[2]), *sys.argv[3:])
    raise SystemExit(main())
