"""Runs a study: starts each run once the run that it needs is done, and records results.

A failed run does not stop the others.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..reporting.progress import duration
from .grid import Job
from .run_folders import CONSOLE, RunFolders
from .runner import Run, Runner

POLL_SECONDS = 0.2
"""Seconds between two checks of the runs: short enough for a live display, long compared with the work of a check."""

CRASHES = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")}
"""Signals that a fault in compiled code raises in its own process."""


@dataclass
class Progress:
    """The progress of a study.

    Attributes:
        total: all runs.
        jobs: number of concurrent runs.
        done: names of runs that are done, including those of an earlier start of the study.
        failed: {name: cause} of failed runs, including those of an earlier start of the study.
        running: {run: iterations done}.
        seconds: {(task, model): (seconds, iterations)}, summed over runs that finished without an interruption.
    """

    total: list[Job]
    jobs: int
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    running: dict[Job, int] = field(default_factory=dict)
    seconds: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)

    @property
    def remaining(self) -> list[Job]:
        """Runs that are neither done nor failed."""
        return [job for job in self.total if job.name not in self.done and job.name not in self.failed]

    def add_time(self, job: Job, seconds: float | None) -> None:
        """Adds a run's duration to the data for `time_left`; None, for a resumed run, is ignored."""
        if seconds is None:
            return
        spent, count = self.seconds.get((job.task, job.model), (0.0, 0))
        self.seconds[job.task, job.model] = spent + seconds, count + job.iterations

    def time_left(self) -> float | None:
        """Estimates the seconds until all runs are done, from the pace of finished runs; None without finished runs."""
        if not self.seconds:
            return None
        paces = {key: spent / count for key, (spent, count) in self.seconds.items()}
        usual = sum(paces.values()) / len(paces)
        rest = [
            (job.iterations - self.running.get(job, 0)) * paces.get((job.task, job.model), usual)
            for job in self.remaining
        ]
        return max(sum(rest) / self.jobs, max(rest, default=0.0))


def run_jobs(
    jobs: Sequence[Job],
    folders: RunFolders,
    runner: Runner,
    limit: int,
    *,
    retry: bool = False,
    show: Callable[[Progress, str], None] = lambda progress, news: None,
    on_run_end: Callable[[], None] = lambda: None,
) -> Progress:
    """Runs all jobs that are not done, at most `limit` at a time; an interrupt stops the active runs.

    Args:
        jobs: the runs; each run comes after the run that it needs.
        folders: folders of the runs.
        runner: starts the runs.
        limit: number of concurrent runs.
        retry: True to repeat runs that failed before.
        show: called several times a second with the progress and a line of news, or "" if there is none.
        on_run_end: called after each run that ends.

    Returns:
        The progress at the end.
    """
    progress = _recorded(jobs, folders, limit, retry)
    running: dict[Job, _Running] = {}
    try:
        while progress.remaining:
            for job in progress.remaining:
                ready = job.needs is None or job.needs.name in progress.done
                if len(running) < limit and ready and job not in running:
                    slot = min(set(range(limit)) - {other.slot for other in running.values()})
                    running[job] = _start(job, folders, runner, slot)
                    show(progress, f"{job.name}: {'resumes' if running[job].resumed else 'starts'}")
            time.sleep(POLL_SECONDS)
            for job, started in list(running.items()):
                status = started.run.ended()
                progress.running[job] = folders.iteration(job)
                if status is None:
                    continue
                del running[job], progress.running[job]
                show(progress, _finish_run(job, status, started, folders, progress))
                _fail_dependents(progress)
                on_run_end()
            show(progress, "")
    finally:
        for started in running.values():
            started.run.stop()
    return progress


@dataclass(frozen=True)
class _Running:
    """An active run.

    Attributes:
        run: the process or cluster job.
        start: `time.monotonic()` when it was started.
        slot: index of the run among the concurrent runs, from 0.
        resumed: True if the run continues from a checkpoint.
    """

    run: Run
    start: float
    slot: int
    resumed: bool


def _recorded(jobs: Sequence[Job], folders: RunFolders, limit: int, retry: bool) -> Progress:
    """Reads the progress from the runs' folders; with `retry`, failed runs count as not done."""
    progress = Progress(list(jobs), limit)
    for job in jobs:
        result, failure = folders.result(job), folders.failure(job)
        if result is not None:
            progress.done.add(job.name)
            progress.add_time(job, result["seconds"])
        elif failure is not None and not retry:
            progress.failed[job.name] = failure["cause"]
    _fail_dependents(progress)
    return progress


def _start(job: Job, folders: RunFolders, runner: Runner, slot: int) -> _Running:
    """Starts or resumes a run."""
    folders.begin(job)
    resumed = folders.iteration(job) > 0
    run = runner.start(folders.arguments(job), folders.folder(job) / CONSOLE, slot)
    return _Running(run, time.monotonic(), slot, resumed)


def _finish_run(job: Job, status: int, started: _Running, folders: RunFolders, progress: Progress) -> str:
    """Records a run that ended with exit status `status`; returns a one-line summary."""
    seconds = time.monotonic() - started.start
    if status < 0:
        cause = ended_by(-status, folders.iteration(job))
    elif status:
        cause = ""
    else:
        cause = folders.finish(job, None if started.resumed else seconds)
        result = folders.result(job) if not cause else None
        if result is not None:
            progress.done.add(job.name)
            progress.add_time(job, None if started.resumed else seconds)
            metrics = list(result["rows"].values())[-1]["metrics"]
            return f"{job.name}: done in {duration(seconds)}, {job.metric} {metrics[job.metric]:.2f}"
    progress.failed[job.name] = folders.fail(job, cause)["cause"]
    return f"{job.name}: failed, {progress.failed[job.name]}"


def ended_by(number: int, iterations: int) -> str:
    """Describes how a signal ended a run.

    Args:
        number: number of the signal.
        iterations: number of iterations that the run had reported.

    Returns:
        E.g. "crashed (segmentation fault, signal 11) after iteration 799". Iterations are counted from 0, as in the
        run's log.
    """
    name = (signal.strsignal(number) or "unknown").lower()
    text = f"{'crashed' if number in CRASHES else 'ended'} ({name}, signal {number})"
    if number == signal.SIGKILL:
        text += ", perhaps out of memory,"
    return f"{text} after iteration {iterations - 1}" if iterations else f"{text} before its first report"


def _fail_dependents(progress: Progress) -> None:
    """Marks runs that need a failed run as failed, in memory only: a later start of the study tries them again."""
    for job in progress.remaining:
        failed = next((other.name for other in reversed(job.needed) if other.name in progress.failed), None)
        if failed is not None:
            progress.failed[job.name] = f"the run that it needs, {failed}, failed"
