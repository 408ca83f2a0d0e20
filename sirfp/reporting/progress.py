"""Says on standard error what a long command is doing: a line for each stage, and on a terminal a bar.

A command that ends early says only its result, or the one line of an error.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 5.0
"""Seconds that a command may take without a word, unless the environment variable SIRFP_PATIENCE gives another number;
"inf": stages are never said."""


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
    """Yields items; shows a progress bar if standard error is a terminal, and begins the stage `label` if not."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        stage(label)
    return iter(track(items, label, total=total, console=console, transient=True, disable=not console.is_terminal))
