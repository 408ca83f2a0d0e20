"""Goes through a study: starts what can be started, keeps what comes, and never lets one failure stop the rest."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .cells import CONSOLE, Cells
from .grid import Job
from .runner import Run, Runner

PAUSE = 0.2
"""Seconds between two looks at the runs."""
CRASHES = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")}
"""Signals that a fault in a program's own compiled code leads to."""


@dataclass
class Progress:
    """How far a study is; what a display draws.

    Attributes:
        total: every run.
        done, failed: those that ended so, now or in an earlier start.
        running: {run: iterations done}.
        seconds: {(task, model): (seconds, iterations)} of runs that ended well in one go.
        jobs: how many runs go on at a time.
    """

    total: list[Job]
    jobs: int
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[Job, int] = field(default_factory=dict)
    seconds: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    @property
    def left(self) -> list[Job]:
        """Runs that have not ended."""
        return [job for job in self.total if job.name not in self.done and job.name not in self.failed]

    def note(self, job: Job, seconds: float | None) -> None:
        """Remembers how long a run's iterations took; None where it went on from a checkpoint."""
        if seconds is None:
            return
        spent, count = self.seconds.get((job.task, job.model), (0.0, 0))
        self.seconds[job.task, job.model] = spent + seconds, count + job.iterations

    def time_left(self) -> float | None:
        """Seconds until the end as the pace of what is done says; None before anything is."""
        if not self.seconds:
            return None
        paces = {key: spent / count for key, (spent, count) in self.seconds.items()}
        usual = sum(paces.values()) / len(paces)
        rest = [
            (job.iterations - self.running.get(job, 0)) * paces.get((job.task, job.model), usual) for job in self.left
        ]
        return max(sum(rest) / self.jobs, max(rest, default=0.0))


def work(
    jobs: Sequence[Job],
    cells: Cells,
    runner: Runner,
    limit: int,
    *,
    retry: bool = False,
    show: Callable[[Progress, str], None] = lambda progress, news: None,
    changed: Callable[[], None] = lambda: None,
) -> Progress:
    """Runs all that is not done, `limit` at a time, and ends what runs if it is interrupted.

    Args:
        jobs: the runs, each dense one before those that need it.
        cells: their folders.
        runner: where they run.
        limit: how many at a time.
        retry: also those that failed before.
        show: is told of the progress several times a second, with a line of news or "".
        changed: is called when a run has ended.

    Returns:
        How far it came.
    """
    progress = Progress(list(jobs), limit)
    for job in jobs:
        state = cells.state(job)
        if state == "done":
            progress.done.add(job.name)
            progress.note(job, cells.result(job)["seconds"])
        elif state == "failed" and not retry:
            progress.failed[job.name] = cells.failure(job)["cause"]
    running: dict[Job, tuple[Run, float, int, int]] = {}
    _block(progress)
    try:
        while progress.left:
            for job in progress.left:
                ready = job.dense or job.needs.name in progress.done
                if len(running) < limit and ready and job not in running:
                    slot = min(set(range(limit)) - {slot for _, _, slot, _ in running.values()})
                    cells.begin(job)
                    before = cells.iteration(job)
                    run = runner.start(cells.arguments(job), cells.folder(job) / CONSOLE, slot)
                    running[job] = run, time.monotonic(), slot, before
                    show(progress, f"{job.name}: {'goes on' if before else 'starts'}")
            time.sleep(PAUSE)
            for job, (run, start, _, before) in list(running.items()):
                status = run.ended()
                progress.running[job] = cells.iteration(job)
                if status is None:
                    continue
                seconds = time.monotonic() - start
                del running[job], progress.running[job]
                show(progress, _end(job, status, seconds, before, cells, progress))
                _block(progress)
                changed()
            show(progress, "")
    finally:
        for run, *_ in running.values():
            run.stop()
    return progress


def _end(job: Job, status: int, seconds: float, before: int, cells: Cells, progress: Progress) -> str:
    """Keeps how a run ended; says it in a line."""
    if status < 0:
        cause = ended_by(-status, cells.iteration(job))
    elif status:
        cause = ""
    else:
        cause = cells.finish(job, None if before else seconds)
        if not cause:
            progress.done.add(job.name)
            progress.note(job, None if before else seconds)
            metrics = list(cells.result(job)["rows"].values())[-1]["metrics"]
            return f"{job.name}: done in {duration(seconds)}, {job.metric} {metrics[job.metric]:.2f}"
    progress.failed[job.name] = cells.fail(job, cause)["cause"]
    return f"{job.name}: failed, {progress.failed[job.name]}"


def ended_by(number: int, iterations: int) -> str:
    """What a signal did to a run, in words.

    Args:
        number: of the signal.
        iterations: how many the run had done, as far as it had said; 0 where it had said nothing.

    Returns:
        E.g. "crashed (segmentation fault, signal 11) after iteration 799"; iterations are counted from 0, as in the
        run's log.
    """
    name = (signal.strsignal(number) or "unknown").lower()
    text = f"{'crashed' if number in CRASHES else 'ended'} ({name}, signal {number})"
    if number == signal.SIGKILL:
        text += ", perhaps for want of memory,"
    return f"{text} after iteration {iterations - 1}" if iterations else f"{text} before its first report"


def _block(progress: Progress) -> None:
    """What needs a run that failed fails as well, for now; only the run itself keeps a marker."""
    for job in progress.left:
        if job.needs and job.needs.name in progress.failed:
            progress.failed[job.name] = f"its dense run {job.needs.name} failed"


def duration(seconds: float) -> str:
    """Seconds as text, "1:05" or "2:03:04"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
