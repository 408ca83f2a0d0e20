"""The tables of `latency_profile.py`, one for each pruned network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sirfp.reporting.tables import Table

COLUMNS = ("part", "FLOPs", "time", "dense, ms", "pruned, ms", "FLOPs kept", "computed", "time kept", "over")
LEAST = 0.003
"""Parts with less than this share of the dense latency are only in the sum."""


def title(row: Mapping[str, Any]) -> str:
    """The title of a table."""
    width = row["network"].rpartition(" ")[2]
    widths = "any width" if width == "1" else f"widths in multiples of {width}"
    share = row["pruned_s"] / row["dense_s"]
    return f"**{row['model']}, batch {row['batch']}, {row['runtime']}, {widths}**: {share:.2f} of the dense latency"


def table(row: Mapping[str, Any]) -> Table:
    """A pruned network's parts, sorted by the column "over" from the largest down, and the sum of all parts."""
    whole = {"part": "all", "flops": 1.0, "over": sum(part["over"] for part in row["parts"])}
    whole |= {key: row[key] for key in ("dense_s", "pruned_s", "flops_kept", "computed")}
    shown = [part for part in row["parts"] if max(part["dense_s"], part["pruned_s"]) >= LEAST * row["dense_s"]]
    return Table(COLUMNS, tuple(cells(part, row["dense_s"]) for part in [*shown, whole]))


def calls(row: Mapping[str, Any]) -> str:
    """The number of calls of each operator, dense and pruned."""
    words = [", ".join(f"{name} {n}" for name, n in row["operators"][key].items()) for key in ("dense", "pruned")]
    return f"Operators, dense: {words[0]}; pruned: {words[1]}."


def cells(part: Mapping[str, Any], whole: float) -> tuple[str, ...]:
    """One line of a table."""

    def number(key: str, form: str) -> str:
        return format(part[key], form) if part.get(key) is not None else ""

    before, after = part["dense_s"], part["pruned_s"]
    return (
        part["part"],
        number("flops", ".1%"),
        f"{before / whole:.1%}",
        f"{before * 1e3:.2f}",
        f"{after * 1e3:.2f}",
        number("flops_kept", ".2f"),
        number("computed", ".2f"),
        f"{after / before:.2f}" if before else "",
        f"{100 * part['over']:+.1f}",
    )
