"""Shows the progress of a study on standard error: bars on a terminal, else one line per start and end of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..reporting.progress import duration
from .scheduler import Progress


@contextmanager
def display() -> Iterator[Callable[[Progress, str], None]]:
    """Yields the function to pass as `show` to `sirfp.study.scheduler.run_jobs`."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _line
        return
    from rich.live import Live

    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def draw(progress: Progress, news: str) -> None:
            if news:
                console.print(news, markup=False, soft_wrap=True)
            live.update(_bars(progress))

        yield draw


def status_line(progress: Progress) -> str:
    """The number of runs that are done, failed and left, and the estimated time until all are done."""
    parts = [f"{len(progress.done)} done", f"{len(progress.failed)} failed", f"{len(progress.remaining)} left"]
    seconds = progress.time_left() if progress.remaining else None
    return ", ".join(parts) + (f", about {duration(seconds)} to go" if seconds is not None else "")


def _line(progress: Progress, news: str) -> None:
    if news:
        print(f"{time.strftime('%H:%M:%S')} {news} ({status_line(progress)})", file=sys.stderr, flush=True)


def _bars(progress: Progress):
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    ended = len(progress.done) + len(progress.failed)
    table = Table.grid(padding=(0, 2))
    table.add_row(
        Text("runs", "bold"), ProgressBar(len(progress.total), ended, width=30), f"{ended}/{len(progress.total)}"
    )
    for job, done in progress.running.items():
        table.add_row(Text(job.name), ProgressBar(job.iterations, done, width=30), f"{done}/{job.iterations}")
    return Group(table, Text(status_line(progress), "red" if progress.failed else ""))
