"""The result of a subcommand: data for programs, text and tables for people, and success or failure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """The result of a subcommand.

    Attributes:
        data: data printed with `--json`.
        output: texts and tables (`sirfp.reporting.tables.Table` or rich's) printed without `--json`, in order.
        failure: reason of a failed check, one line for standard error; the exit code is then 1. "" if no check failed.
    """

    data: dict[str, Any]
    output: list[Any] = field(default_factory=list)
    failure: str = ""
