#!/usr/bin/env python3
"""The demo: evaluates a small trained network, prunes it inside a short training run, fine-tunes it and reports.

    make demo                        semantic segmentation
    make demo TASK=detection         boxes and classes of objects
    make demo TASK=classification
    make demo SCRATCH=1              trains the network from nothing first; tens of minutes

Needs no download and no GPU. The networks are trained on the embedded scenes; README.md beside this file says how.
Writes to output/demo.
"""

from __future__ import annotations

from sirfp.training.begin import begin

begin()  # before imports that need Detectron2

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import networks
from networks import TASKS, Task
from progress import Costs, ShowProgress, quiet_console
from rich.console import Console

from sirfp.data.scenes import make_scenes
from sirfp.engine import Trainer, one_line_errors, run
from sirfp.reporting.tables import Row, comparison, percent
from sirfp.study import run_page
from sirfp.study.run_page import rows

OUTPUT = Path("output/demo")
COSTS = {
    "segmentation": Costs(evaluation=8, cut=45, pruned=0.5, end=15),
    "detection": Costs(evaluation=8, cut=30, pruned=0.55, end=15),
    "classification": Costs(evaluation=8, cut=28, pruned=0.9, end=25),
}


def main() -> None:
    """Runs the demo of the task that the command line names."""
    args = parser().parse_args()
    task, output = TASKS[args.task], OUTPUT / args.task
    with one_line_errors():
        if args.ship:
            weights = networks.train(task, OUTPUT, networks.start_of(task))
        else:
            weights = networks.train(task, OUTPUT) if args.scratch else networks.shipped(task)
        scenes = make_scenes()
        shutil.rmtree(output, ignore_errors=True)
    print(f"Prunes {os.path.relpath(weights)} on the scenes in {scenes.root}; log: {output}/log.txt", flush=True)
    prune(task, weights, output)
    gained = None
    if args.control or args.ship:
        gained = networks.continued(task, weights, OUTPUT)
    if args.ship:
        networks.ship(task, weights.parent, {"dense": rows(output)["dense"].metrics[task.metric], "continued": gained})
    elif not args.scratch and gained is None:
        gained = networks.record()[task.project]["continued"]
    say(task, output, gained)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    found = argparse.ArgumentParser(description="Prunes a small trained network, fine-tunes it and reports.")
    found.add_argument("--task", choices=TASKS, default="segmentation", help="(default %(default)s)")
    found.add_argument("--scratch", action="store_true", help="train the network from nothing first")
    found.add_argument("--control", action="store_true", help="also train the dense network on for as long")
    found.add_argument("--ship", action="store_true", help="replace the checkout's trained network by a new one")
    return found


def prune(task: Task, weights: Path, output: Path) -> None:
    """Runs the task's own training script on its pruning config, with progress in place of its log."""
    sys.path.insert(0, str(task.script.parent))
    script = importlib.import_module(task.script.stem)
    options = {"MODEL.WEIGHTS": weights, "OUTPUT_DIR": output}
    words = [str(word) for option in options.items() for word in option]
    run(shown(trainer_of(script), COSTS[task.project]), None, ["--config-file", str(task.pruning), *words])


def trainer_of(script: ModuleType) -> type[Trainer]:
    """Returns the trainer that a project's training script defines."""
    return next(
        found for found in vars(script).values()
        if isinstance(found, type) and issubclass(found, Trainer) and found is not Trainer
    )  # fmt: skip


def shown(base: type[Trainer], costs: Costs) -> type[Trainer]:
    """Returns a trainer that does the same as `base`, with progress in place of its log."""

    class Shown(base):  # type: ignore[valid-type, misc]
        def __init__(self, cfg):
            quiet_console()
            super().__init__(cfg)

        def build_hooks(self):
            self.progress = ShowProgress(self.cfg, costs)
            return [self.progress, *super().build_hooks()]

        def train(self):
            try:
                return super().train()
            finally:
                self.progress.finish()

    return Shown


def say(task: Task, output: Path, gained: float | None) -> None:
    """Prints the results of a run, writes them as a page, and says what can be done next.

    Args:
        task: the task.
        output: the output folder of the run.
        gained: the metric of the dense network that was trained on for as long; None if it is not known.
    """
    notes = remarks(task, rows(output), networks.config(task).SOLVER.MAX_ITER, gained)
    page = run_page.write(output, f"Demo: {task.project}", notes, [task.metric])
    Console().print(comparison(rows(output).values(), [task.metric]).rich())
    for note in notes:
        print(note)
    print(last_line(task, output, page))


def remarks(task: Task, found: Mapping[str, Row], iterations: int, gained: float | None) -> list[str]:
    """Returns what the table means, in sentences.

    Args:
        task: the task.
        found: the networks of the run, see `rows`.
        iterations: the number of iterations of the run.
        gained: see `say`.
    """
    dense, pruned, tuned = (found[name] for name in ("dense", "pruned", "fine-tuned"))
    of = {row.name: f"{row.metrics[task.metric]:.1f}" for row in found.values()}
    first = (
        f"{task.name} {of['dense']} dense, {of['pruned']} right after pruning to "
        f"{percent(tuned.flops, dense.flops)} of the FLOPs, {of['fine-tuned']} fine-tuned."
    )
    if dense.latency and tuned.latency:
        first += (
            f" One image takes {1e3 * dense.latency:.1f} ms dense and {1e3 * tuned.latency:.1f} ms pruned: "
            f"{dense.latency / tuned.latency:.2f} times as fast."
        )
    more = f"The pruned network has trained for {iterations} iterations more than the dense one."
    command = f"make demo TASK={task.project} CONTROL=1"
    if gained is None:
        return [first, f"{more} What they would give the dense network: {command}"]
    return [first, f"{more} Trained on for as many, the dense network has {gained:.1f} (measured by {command})."]


def last_line(task: Task, output: Path, page: Path) -> str:
    """Returns where the results are, and what to try next."""
    names = list(TASKS)
    other = names[(names.index(task.project) + 1) % len(names)]
    return (
        f"Picture: {output / 'predictions.png'}; table: {output / 'pruning.md'}; report: {page}. "
        f"Next: make demo TASK={other}, or prune your own network (README.md)"
    )


if __name__ == "__main__":
    main()
