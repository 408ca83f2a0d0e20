"""Says on standard error what a long command is doing: a line for each stage with the time left, on a terminal a bar.

A command that ends early says only its result, or the one line of an error.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

T = TypeVar("T")
logger = logging.getLogger(__name__)
PATIENCE = 5.0
"""Seconds that a stage takes before its time that is left is said. Also the seconds that a command may take without a
word, unless the environment variable SIRFP_PATIENCE gives another number; "inf": stages are never said."""


class Stages:
    """Prints the stage of a command that has run for `patience` seconds, and every later stage as it begins.

    Args:
        patience: seconds.
    """

    def __init__(self, patience: float):
        self.patience, self.begin = patience, time.monotonic()
        self.current, self.lock = "", threading.Lock()
        self.notes: list[str] = []
        self.timer = threading.Timer(patience, self.say)
        self.timer.daemon = True
        if math.isfinite(patience):
            self.timer.start()

    def enter(self, stage: str) -> None:
        """Begins a stage."""
        with self.lock:
            self.current = stage
        if time.monotonic() - self.begin >= self.patience:
            self.say()

    def note(self, text: str) -> None:
        """Adds a line that is printed before the next stage that is."""
        with self.lock:
            self.notes.append(text)

    def say(self) -> None:
        """Prints the notes and the current stage, once."""
        with self.lock:
            lines, self.notes, self.current = [*self.notes, self.current], [], ""
            for text in filter(None, lines):
                print(f"[{time.monotonic() - self.begin:.0f} s] {text}", file=sys.stderr, flush=True)


_running: list[Stages] = []
_bars: list[Progress] = []
"""The bar on the terminal, if there is one: two bars at once would overwrite each other."""


@contextmanager
def stages_on_stderr(patience: float | None = None) -> Iterator[None]:
    """Within the block, `stage` prints on standard error, if the block takes longer than `patience` seconds."""
    stages = Stages(_patience() if patience is None else patience)
    _running.append(stages)
    try:
        yield
    finally:
        _running.remove(stages)
        stages.timer.cancel()


def _patience() -> float:
    try:
        return float(os.environ.get("SIRFP_PATIENCE", PATIENCE))
    except ValueError:
        return PATIENCE


def stage(text: str) -> None:
    """Says what begins now, e.g. "finding groups of channels"; without effect outside `stages_on_stderr`."""
    if _running:
        _running[-1].enter(text)


def note(text: str) -> None:
    """Says something about the whole command, if it lasts; without effect outside `stages_on_stderr`."""
    if _running:
        _running[-1].note(text)


def with_progress(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yields items; shows how much time they still take, once they have taken `PATIENCE` seconds.

    On a terminal there is a bar with the time left. Elsewhere the stage `label` begins with the first item, and one
    further line says how long it will last: on standard error within `stages_on_stderr`, else in the log.

    Args:
        items: the items; the time that is left is estimated from those that are finished.
        label: what is done, e.g. "measuring loss curves".
        total: the number of items.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        yield from _with_bar(items, label, total, console)
        return
    stage(label)
    begin, said = time.monotonic(), False
    for done, item in enumerate(items):
        spent = time.monotonic() - begin
        left = spent / done * (total - done) if done else 0.0
        if not said and min(spent, left) >= PATIENCE:
            said = True
            _say(f"{label}: {done} of {total}, about {duration(left)} left")
        yield item


def _say(text: str) -> None:
    """Prints a line within `stages_on_stderr`, else logs it."""
    if _running:
        _running[-1].enter(text)
    else:
        logger.info(text[0].upper() + text[1:])


def _with_bar(items: Iterable[T], label: str, total: int, console: Console) -> Iterator[T]:
    """Yields items and shows a bar until the last one is finished, or until the bar of the next stage begins."""
    from rich.progress import Progress

    while _bars:
        _bars.pop().stop()
    bar = Progress(console=console, transient=True)
    _bars.append(bar)
    task = bar.add_task(label, total=total)
    bar.start()
    try:
        for item in items:
            yield item
            bar.advance(task)
    finally:
        bar.stop()
        if bar in _bars:
            _bars.remove(bar)


def duration(seconds: float) -> str:
    """Formats seconds as "1:05" (minutes and seconds) or "2:03:04"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
