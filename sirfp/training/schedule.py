"""When a training run accumulates, prunes, recovers and fine-tunes (docs/method.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..budget.target import Target
from ..errors import InputError


@dataclass(frozen=True)
class Schedule:
    """The phases of a run, in iterations.

    The first pruning happens when `start` iterations are done, later ones `recover` iterations apart; statistics
    accumulate over the `accumulate` iterations before the first and over the whole of each recovery.

    Attributes:
        start: iterations before the first pruning.
        steps: how many prunings.
        accumulate: iterations of statistics before the first.
        recover: iterations between prunings.
        keep: the budget, which the last pruning meets.
        end: iterations of the run.
    """

    start: int
    steps: int
    accumulate: int
    recover: int
    keep: Target
    end: int

    @staticmethod
    def from_config(cfg) -> Schedule:
        """Reads cfg.SIRFP; START_ITER 0 stands for ACCUMULATE_ITERS.

        Raises:
            InputError: if the phases do not fit into SOLVER.MAX_ITER.
        """
        node = cfg.SIRFP
        start = node.START_ITER or node.ACCUMULATE_ITERS
        schedule = Schedule(
            start, node.STEPS, node.ACCUMULATE_ITERS, node.RECOVER_ITERS, Target.from_config(cfg), cfg.SOLVER.MAX_ITER
        )
        if start < node.ACCUMULATE_ITERS:
            raise InputError(
                f"SIRFP.ACCUMULATE_ITERS {node.ACCUMULATE_ITERS} is more than SIRFP.START_ITER, {start} iterations"
            )
        if schedule.keep.share < 1:
            if not start:
                raise InputError("SIRFP.ACCUMULATE_ITERS and START_ITER are 0: set one, the first pruning comes then")
            if node.STEPS > 1 and not node.RECOVER_ITERS:
                raise InputError(f"SIRFP.STEPS {node.STEPS} needs SIRFP.RECOVER_ITERS of at least 1, got 0")
            if node.STEPS > cfg.SOLVER.MAX_ITER:
                raise InputError(f"SIRFP.STEPS {node.STEPS} is more than SOLVER.MAX_ITER, {cfg.SOLVER.MAX_ITER}")
        if schedule.keep.share < 1 and schedule.iterations[-1] > schedule.end:
            raise InputError(
                f"the last of {node.STEPS} prunings comes at iteration {schedule.iterations[-1]}, after "
                f"SOLVER.MAX_ITER {schedule.end}: lower SIRFP.START_ITER, STEPS or RECOVER_ITERS"
            )
        return schedule

    @property
    def iterations(self) -> tuple[int, ...]:
        """How many iterations are done at each pruning."""
        return tuple(self.start + k * self.recover for k in range(self.steps))

    def target(self, step: int) -> Target:
        """The budget of pruning `step` (from 0): equal shares of the dense network go at each."""
        return replace(self.keep, share=1 - (1 - self.keep.share) * (step + 1) / self.steps)

    def accumulates(self, iteration: int) -> bool:
        """Whether statistics are gathered in an iteration (from 0)."""
        return self.start - self.accumulate <= iteration < self.iterations[-1]

    def phase(self, iteration: int) -> str:
        """The name of the phase that an iteration (from 0) belongs to."""
        if iteration < self.start:
            return "accumulate" if self.accumulates(iteration) else "train"
        return "recover" if iteration < self.iterations[-1] else "fine-tune"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the stretches between prunings, the first and the last included."""
        marks = (0, *self.iterations, self.end)
        return tuple(b - a for a, b in zip(marks, marks[1:], strict=False))
