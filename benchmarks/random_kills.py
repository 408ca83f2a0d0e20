#!/usr/bin/env python3
"""Kills training runs of the three projects at random moments, resumes them, and compares them with whole runs.

    python benchmarks/random_kills.py --kills 50
    for seed in 0 1 2 3 4; do python benchmarks/random_kills.py --kills 10 --seed $seed --results kills.json; done

Each run is a small network on the embedded scenes, pruned in two steps, in float32 with fixed seeds. It is killed
(SIGKILL) up to three times, in a randomly chosen phase at a random moment, and resumed each time with `--resume`. At
its end it is compared with an uninterrupted run: the plan, and every weight to the last bit. Each start is in its own
process, forked from this one. Takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sirfp import engine
from sirfp.data.scenes import make_scenes
from sirfp.hooks.report import Report
from sirfp.session import PruningSession
from sirfp.training.checkpointer import Checkpointer
from sirfp.training.schedule import Schedule

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
SHORT = """
    MODEL.TIMM.NAME test_resnet SOLVER.MAX_ITER 30 SOLVER.WARMUP_ITERS 3 SOLVER.IMS_PER_BATCH 4 SOLVER.BASE_LR 0.01
    SOLVER.CHECKPOINT_PERIOD 4 SOLVER.AMP.ENABLED False DATALOADER.NUM_WORKERS 0 SIRFP.START_ITER 12
    SIRFP.ACCUMULATE_ITERS 8 SIRFP.ACCUMULATE_PERIOD 1 SIRFP.RECOVER_ITERS 6 SIRFP.RECONSTRUCTION_ITERS 2
    SIRFP.RECOVER_NORM_ITERS 1
""".split()
RUNS = {
    "segmentation": (
        "scenes/deeplab_v3_plus_r18_sirfp.yaml",
        ["INPUT.TRAIN_SIZE", "[64, 64]", "SIRFP.INPUT_SIZE", "[64, 64]", "INPUT.MIN_SIZE_TRAIN", "(64, 80)",
         "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"],
    ),
    "detection": (
        "scenes/retinanet_r18_sirfp.yaml",
        ["SIRFP.INPUT_SIZE", "[64, 64]", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
         "MODEL.FPN.OUT_CHANNELS", "32"],
    ),
    "classification": ("scenes/resnet18_sirfp.yaml", ["INPUT.SIZE", "32"]),
}  # fmt: skip
TRAINERS = {
    "segmentation": ("SegmentationTrainer", "add_segmentation_config"),
    "detection": ("DetectionTrainer", ""),
    "classification": ("ClassificationTrainer", "add_classification_config"),
}
PHASES = ("starting", "training", "accumulating", "cutting", "recovering", "writing", "evaluating", "reporting")
MOST = 3
"""Kills of one run."""


def arguments(task: str, folder: Path, *flags: str) -> list[str]:
    """The command line of a task's small run, without the script."""
    config, own = RUNS[task]
    file = PROJECTS / task / "configs" / config
    return ["--num-gpus", "0", *flags, "--config-file", str(file), *SHORT, *own, "OUTPUT_DIR", str(folder)]


def small_scenes(root: Path) -> None:
    """Makes the scenes that all runs use, below a folder to which DETECTRON2_DATASETS is then set."""
    make_scenes(root / "scenes", train=24, val=12, size=64)
    os.environ["DETECTRON2_DATASETS"] = str(root)


class Phase:
    """The current phase of a run, as a number in memory that is shared with the killing process."""

    def __init__(self):
        self.value = multiprocessing.RawValue("i", 0)

    @property
    def name(self) -> str:
        """One of PHASES."""
        return PHASES[self.value.value]

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Sets the phase for the duration of a block."""
        before, self.value.value = self.value.value, PHASES.index(name)
        yield
        self.value.value = before

    def watch(self) -> None:
        """Makes the runs of this process set their phase."""
        for owner, method, name in (
            (PruningSession, "prune", "cutting"),
            (Checkpointer, "save", "writing"),
            (engine.Trainer, "test", "evaluating"),
            (Report, "_write", "reporting"),
        ):
            self._say(owner, method, name)
        step = engine.Trainer.run_step

        def run_step(trainer: engine.Trainer) -> None:
            doing = Schedule.from_config(trainer.cfg).phase(trainer.iter)
            names = {"accumulate": "accumulating", "recover": "recovering"}
            self.value.value = PHASES.index(names.get(doing, "training"))
            step(trainer)

        engine.Trainer.run_step = run_step

    def _say(self, owner: type, method: str, name: str) -> None:
        kept = owner.__dict__[method]
        plain = getattr(kept, "__func__", kept)

        @functools.wraps(plain)
        def told(*args, **kwargs):
            with self.of(name):
                return plain(*args, **kwargs)

        setattr(owner, method, classmethod(told) if isinstance(kept, classmethod) else told)


class Killer:
    """Starts each run in its own process and kills it.

    Args:
        projects: the names that the train_net.py of each task defines.
        phase: the phase that the runs set.
        chance: the source of random numbers.
    """

    def __init__(self, projects: dict[str, dict[str, Any]], phase: Phase, chance: random.Random):
        self.projects, self.phase, self.chance = projects, phase, chance

    def start(self, task: str, folder: Path, resume: bool) -> int:
        """Starts a run and returns its process id."""
        self.phase.value.value = 0
        child = os.fork()
        if child:
            return child
        with open(f"{folder}.txt", "a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            code = 1
            try:
                trainer, configure = (self.projects[task].get(name) for name in TRAINERS[task])
                engine.run(trainer, configure, arguments(task, folder, *(["--resume"] if resume else [])))
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                said.flush()
                os._exit(code)

    def whole(self, task: str, folder: Path, resume: bool = False) -> float:
        """An uninterrupted run; returns the seconds it took."""
        begin = time.perf_counter()
        code = os.waitstatus_to_exitcode(os.waitpid(self.start(task, folder, resume), 0)[1])
        if code:
            raise SystemExit(f"{task} ended with exit code {code}: see {folder}.txt")
        return time.perf_counter() - begin

    def kill(self, task: str, folder: Path, resume: bool, within: float) -> str:
        """Starts a run and kills it in a random phase; returns the phase it was in, or "" if it had ended.

        Args:
            task: the run's task.
            folder: the run's output folder.
            resume: whether it resumes from the folder's checkpoints.
            within: the seconds that an uninterrupted run takes.
        """
        aim = self.chance.choice(("", *PHASES[1:]))  # "": any moment
        times = 1 if aim in ("cutting", "reporting") else self.chance.randint(1, 3)
        child, begin, inside, seen = self.start(task, folder, resume), time.monotonic(), False, 0
        moment = self.chance.uniform(0, within)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                if os.waitstatus_to_exitcode(status):
                    raise SystemExit(f"{task} failed by itself: see {folder}.txt")
                return ""
            if aim:
                now = self.phase.name == aim
                seen += now and not inside
                inside = now
                if seen == times:
                    time.sleep(self.chance.uniform(0, 0.03))
                    break
            elif time.monotonic() - begin > moment:
                break
            time.sleep(0.0005)
        phase = self.phase.name
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return phase


def equal(folder: Path, other: Path) -> tuple[bool, bool]:
    """Whether two runs ended with the same plan, and with the same weights to the last bit."""
    ends = [torch.load(f / "model_final.pth", weights_only=True) for f in (folder, other)]
    plans = {(f / "plan.json").read_text() for f in (folder, other)} | {end["plan"] + "\n" for end in ends}
    same = all(torch.equal(ends[0]["model"][name], tensor) for name, tensor in ends[1]["model"].items())
    return len(plans) == 1, same and ends[0]["model"].keys() == ends[1]["model"].keys()


def empty_results() -> dict[str, Any]:
    """Results before any run."""
    return {"runs": 0, "kills": Counter(), "half-written": 0, "same plan": 0, "same weights": 0}


def read(file: Path | None) -> dict[str, dict[str, Any]]:
    """The results of each task from a file; empty results if there is no file."""
    results = {task: empty_results() for task in RUNS}
    if file and file.is_file():
        for task, found in json.loads(file.read_text()).items():
            results[task] = found | {"kills": Counter(found["kills"])}
    return results


def kill_runs(killer: Killer, task: str, root: Path, kills: int) -> dict[str, Any]:
    """Kills runs of a task a number of times; returns the results."""
    within = killer.whole(task, root / f"{task}-whole")
    found = empty_results()
    while found["kills"].total() < kills:
        folder, done = root / f"{task}-{found['runs']}", ""
        for _ in range(min(killer.chance.randint(1, MOST), kills - found["kills"].total())):
            done = killer.kill(task, folder, folder.exists(), within)
            if not done:
                break
            found["kills"][done] += 1
            found["half-written"] += bool(list(folder.glob(".*.part")))
        if done:
            killer.whole(task, folder, resume=folder.exists())
        plan, weights = equal(folder, root / f"{task}-whole")
        found["runs"] += 1
        found["same plan"] += plan
        found["same weights"] += weights
        print(f"{task}: {found}", file=sys.stderr, flush=True)
    return found


def table(results: dict[str, dict]) -> str:
    """The results as a Markdown table, one row per task."""
    head = ["project", "runs", "kills", *PHASES, "left a half-written file", "same plan", "same weights"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for task, found in results.items():
        kills = found["kills"]
        row = [task, found["runs"], kills.total(), *(kills[phase] for phase in PHASES), found["half-written"]]
        row += [f"{found[key]} of {found['runs']}" for key in ("same plan", "same weights")]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Returns 1 if a resumed run ended differently from an uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="over the three projects (50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (0)")
    parser.add_argument("--results", type=Path, help="a JSON file that results are added to")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="random-kills-") as temporary:
        root = Path(temporary)
        small_scenes(root / "datasets")
        projects = {}
        for task in RUNS:
            sys.path.insert(0, str(PROJECTS / task))
            projects[task] = runpy.run_path(str(PROJECTS / task / "train_net.py"))
        phase = Phase()
        phase.watch()
        killer = Killer(projects, phase, random.Random(args.seed))
        results, left = read(args.results), args.kills
        for i, task in enumerate(RUNS):
            share = left // (len(RUNS) - i)
            for key, value in kill_runs(killer, task, root, share).items():
                results[task][key] = results[task][key] + value
            left -= share
    print(table(results))
    if args.results:
        args.results.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(found[key] < found["runs"] for found in results.values() for key in ("same plan", "same weights")))


if __name__ == "__main__":
    sys.exit(main())
