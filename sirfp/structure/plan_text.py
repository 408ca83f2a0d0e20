"""Describes a plan for people: in one line, and as a table of widths."""

from __future__ import annotations

from collections.abc import Mapping


def one_line(criterion: str, flops: tuple[int, int], params: tuple[int, int], groups: int) -> str:
    """Returns e.g. "PruningPlan(magnitude, FLOPs 0.148 -> 0.074 G (50.0%), params 11.2 -> 1.9 M, 12 groups)".

    Args:
        criterion: name of the criterion, or "".
        flops: (dense, pruned) multiply-adds.
        params: (dense, pruned) number of parameters.
        groups: the number of groups.
    """
    parts = [
        *([criterion] if criterion else []),
        f"FLOPs {_in_units(flops, 'G')} ({flops[1] / max(1, flops[0]):.1%})",
        f"params {_in_units(params, 'M')}",
        f"{groups} group{'' if groups == 1 else 's'}",
    ]
    return f"PruningPlan({', '.join(parts)})"


def width_table(every_kept: Mapping[str, tuple[int, ...]], channels: Mapping[str, int]) -> str:
    """Returns a line for each group: its name, its kept and dense channels, and the share that is kept.

    Args:
        every_kept: {group name: kept channel indices}.
        channels: {group name: number of channels of the dense model}.
    """
    rows = [("group", "kept", "of", "share")]
    for name, kept in every_kept.items():
        dense = channels[name]
        rows.append((name, str(len(kept)), str(dense), f"{len(kept) / max(1, dense):.1%}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*lines[:1], "  ".join("-" * n for n in widths), *lines[1:]])


def _in_units(pair: tuple[int, int], unit: str) -> str:
    """Returns a dense and a pruned number, in three digits of the unit that suits the dense one."""
    units = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
    names = list(units)[list(units).index(unit) :]
    fitting = next((name for name in names if pair[0] >= units[name] / 10), "")
    whole = len(str(pair[0] // int(units[fitting]))) if pair[0] >= units[fitting] else 0
    digits = max(0, 3 - whole) if fitting else 0
    first, second = (f"{number / units[fitting]:.{digits}f}" for number in pair)
    return f"{first} -> {second} {fitting}".rstrip()
