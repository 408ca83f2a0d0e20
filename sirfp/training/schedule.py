"""The schedule of a run: when it accumulates, prunes, recovers and fine-tunes (docs/method.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..budget.several_cuts import share_after
from ..budget.target import Target
from ..errors import InputError


@dataclass(frozen=True)
class Schedule:
    """The phases of a run, in iterations.

    The first pruning comes after `start` iterations; each later one comes `recover` iterations after the one before.
    Statistics are accumulated in the last `accumulate` iterations before the first pruning, and in all iterations
    between prunings.

    Attributes:
        start: number of iterations before the first pruning.
        steps: number of prunings.
        accumulate: number of iterations with statistics before the first pruning.
        recover: number of iterations between two prunings.
        keep: the budget, which the last pruning meets.
        end: number of iterations of the run.
        widths: True if the widths of single layers are given (SIRFP.KEEP).
    """

    start: int
    steps: int
    accumulate: int
    recover: int
    keep: Target
    end: int
    widths: bool = False

    @property
    def prunes(self) -> bool:
        """True if channels are to be removed."""
        return self.keep.share < 1 or self.widths

    @staticmethod
    def from_config(cfg) -> Schedule:
        """Reads the schedule from cfg.SIRFP; a START_ITER of 0 means ACCUMULATE_ITERS.

        Raises:
            InputError: the phases do not fit into SOLVER.MAX_ITER, or a value contradicts another.
        """
        node = cfg.SIRFP
        start = node.START_ITER or node.ACCUMULATE_ITERS
        schedule = Schedule(
            start, node.STEPS, node.ACCUMULATE_ITERS, node.RECOVER_ITERS, Target.from_config(cfg), cfg.SOLVER.MAX_ITER,
            bool(node.KEEP),
        )  # fmt: skip
        if start < node.ACCUMULATE_ITERS:
            raise InputError(
                f"SIRFP.ACCUMULATE_ITERS {node.ACCUMULATE_ITERS} is more than SIRFP.START_ITER, {start} iterations"
            )
        if schedule.prunes:
            if not start:
                raise InputError("SIRFP.ACCUMULATE_ITERS and START_ITER are 0; set one of them to prune after it")
            if node.STEPS > 1 and not node.RECOVER_ITERS:
                raise InputError(f"SIRFP.STEPS {node.STEPS} needs SIRFP.RECOVER_ITERS of at least 1, got 0")
            if node.STEPS > cfg.SOLVER.MAX_ITER:
                raise InputError(f"SIRFP.STEPS {node.STEPS} is more than SOLVER.MAX_ITER, {cfg.SOLVER.MAX_ITER}")
        if schedule.prunes and schedule.iterations[-1] > schedule.end:
            raise InputError(
                f"the last of {node.STEPS} prunings comes at iteration {schedule.iterations[-1]}, after "
                f"SOLVER.MAX_ITER {schedule.end}: lower SIRFP.START_ITER, STEPS or RECOVER_ITERS"
            )
        return schedule

    @property
    def iterations(self) -> tuple[int, ...]:
        """For each pruning, the number of iterations before it."""
        return tuple(self.start + k * self.recover for k in range(self.steps))

    def target(self, step: int) -> Target:
        """Returns the budget of pruning `step` (counted from 0)."""
        return replace(self.keep, share=share_after(step + 1, self.steps, self.keep.share))

    def accumulates(self, iteration: int) -> bool:
        """Returns True if statistics are accumulated in an iteration (counted from 0)."""
        return self.start - self.accumulate <= iteration < self.iterations[-1]

    def phase(self, iteration: int) -> str:
        """Returns the name of the phase of an iteration (counted from 0)."""
        if iteration < self.start:
            return "accumulate" if self.accumulates(iteration) else "train"
        return "recover" if iteration < self.iterations[-1] else "fine-tune"

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of iterations before the first pruning, between prunings, and after the last."""
        marks = (0, *self.iterations, self.end)
        return tuple(b - a for a, b in zip(marks, marks[1:], strict=False))
