"""What a subcommand found: data for machines, tables and lines for people, and the exit code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Outcome:
    """The result of a subcommand.

    Attributes:
        data: one JSON object.
        shown: lines of text and tables (`sirfp.reporting.tables.Table` or of rich), in order.
        failure: one line for standard error where what was to be shown is not so; the exit code is 1 then.
    """

    data: dict[str, Any]
    shown: list[Any] = field(default_factory=list)
    failure: str = ""


def followed(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Passes items on and draws a bar of progress on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return iter(track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal))
