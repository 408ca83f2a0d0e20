"""Shows how far a pruning run of the demo is, and how much time is left."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from typing import Any

from detectron2.engine import HookBase
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sirfp.training.schedule import Schedule
from sirfp.training.set_up import LOGGERS

LINES = 10
"""Number of lines that are printed in a run if standard error is no terminal."""


@dataclass(frozen=True)
class Costs:
    """What the parts of a run cost, relative to one iteration of the dense network; for the time that is left.

    Attributes:
        evaluation: an evaluation.
        cut: a pruning.
        pruned: an iteration of the pruned network.
        end: latency, table and pictures.
    """

    evaluation: float
    cut: float
    pruned: float
    end: float


class ShowProgress(HookBase):
    """A bar with the time left on a terminal; elsewhere a line for each tenth of the run. Comes first of all hooks.

    Args:
        cfg: the config of the run.
        costs: what the parts of the run cost.
    """

    def __init__(self, cfg: Any, costs: Costs):
        self.schedule, self.costs = Schedule.from_config(cfg), costs
        self.said, self.what, self.begun = 0, "", time.monotonic()
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description:<44}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self.bar = Progress(*columns, *times, console=console, speed_estimate_period=3600.0)
            self.task = self.bar.add_task("", total=self.done(cfg.SOLVER.MAX_ITER) + costs.evaluation + costs.end)
        self.total = self.done(cfg.SOLVER.MAX_ITER) + costs.evaluation + costs.end

    def done(self, iterations: int) -> float:
        """What has been done after a number of iterations, in iterations of the dense network."""
        cuts = self.schedule.iterations
        before = min(iterations, cuts[0])
        done = before + self.costs.pruned * (iterations - before)
        done += self.costs.cut * sum(cut <= iterations for cut in cuts)
        return done + self.costs.evaluation * ((iterations >= cuts[0]) + (iterations > cuts[-1]))

    def before_train(self) -> None:
        self.begun = time.monotonic()
        if self.bar:
            self.bar.start()
        self.show(0, "gathering statistics")

    def before_step(self) -> None:
        if self.trainer.iter == self.schedule.iterations[-1]:
            self.show(self.done(self.trainer.iter), "evaluating the pruned network")
        elif self.trainer.iter > self.schedule.iterations[-1]:
            self.show(self.done(self.trainer.iter), "fine-tuning the pruned network")
        elif self.trainer.iter in self.schedule.iterations:
            self.show(self.done(self.trainer.iter), "training between two cuts")
        else:
            self.show(self.done(self.trainer.iter))

    def after_step(self) -> None:  # runs before the hooks that evaluate and prune
        now = self.trainer.iter + 1
        if now == self.schedule.iterations[0]:
            self.show(self.done(now - 1) + 1, "evaluating the dense network, then pruning it")
        elif now in self.schedule.iterations:
            self.show(self.done(now - 1) + self.costs.pruned, "removing further channels")

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self.show(self.done(self.trainer.max_iter), "evaluating the fine-tuned network, drawing")

    def finish(self) -> None:
        """Ends the bar."""
        if self.bar:
            self.show(self.total, "done")
            self.bar.stop()

    def show(self, done: float, what: str | None = None) -> None:
        """Shows that `done` of `total` is done, and what is being done now; None for the same as before."""
        if self.bar:
            self.bar.update(self.task, completed=done, **({} if what is None else {"description": what}))
            return
        tenth = int(LINES * done / self.total)
        if what in (None, self.what) and tenth <= self.said:
            return
        self.said, self.what = tenth, what or self.what
        spent = time.monotonic() - self.begun
        left = f", about {spent * (self.total / done - 1):.0f} s left" if done and spent else ""
        print(f"[{done / self.total:4.0%}, {spent:.0f} s{left}] {self.what}", file=sys.stderr, flush=True)


def quiet_console() -> None:
    """Leaves the console to the progress: only warnings are printed, while the log file has everything."""
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.setLevel(logging.WARNING)
