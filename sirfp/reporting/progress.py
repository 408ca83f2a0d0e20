"""Shows how far a long task is, on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def with_progress(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yields items; shows a progress bar if standard error is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return iter(track(items, label, total=total, console=console, transient=True, disable=not console.is_terminal))
