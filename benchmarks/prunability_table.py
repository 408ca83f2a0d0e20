"""The Markdown table of `prunability_timm.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunability import equal_cell, frozen_list, short

Rows = Mapping[tuple[str, str], dict[str, Any]]

HEAD = """# Which architectures of timm can be pruned

    {command}

The smallest network of each of timm's architecture modules was tried with random weights, at its own image size. Each
network is traced, pruned by two random plans to half of its FLOPs (or to the least it can have), compared with the
masked dense network, and run forward and backward in training mode. *Kept* is the share of FLOPs that is left, *least*
the share that the smallest plan leaves. *Equal* is the largest difference from the masked network, which takes its
norms over the channels that are left, relative to the largest output. Where a norm is taken over channels (layer or
group norm), a second plan leaves such groups whole, and its difference comes first. *s* is the time to find the groups.
[torch-pruning](https://github.com/VainF/Torch-Pruning)'s high-level pruner removes 30% of the channels and leaves the
classifier whole, as in its guide.

{summary}

| module | network | M params | kept | least | equal | s | torch-pruning |
| --- | --- | ---: | ---: | ---: | --- | ---: | --- |
{rows}

## What stays whole, and why
These channels stay whole in every plan. Outputs of the network, such as the classifier's, are not listed.

{frozen}
"""


def good(row: dict[str, Any]) -> bool:
    """Whether a network was pruned, runs forward and backward, and equals its masked dense network if it can."""
    if row.get("error"):
        return False
    return row["kept"] < 0.999 and row["exact_equal"]


def summary(rows: Rows) -> str:
    """The number of networks that each tool pruned."""
    lines = []
    for tool in ("sirfp", "torch-pruning"):
        mine = [row for (t, _), row in rows.items() if t == tool]
        if mine:
            half = sum(good(row) and row["kept"] <= 0.5005 for row in mine)
            lines.append(f"{tool}: {sum(map(good, mine))} of {len(mine)} pruned and run")
            lines[-1] += f", {half} to half of their FLOPs." if tool == "sirfp" else "."
    return "\n".join(lines)


def table(rows: Rows) -> str:
    """The page."""
    lines, frozen = [], []
    for module in sorted({module for _, module in rows}):
        row, other = rows.get(("sirfp", module)), rows.get(("torch-pruning", module))
        if row is None:
            continue
        size = f"{row['params'] / 1e6:.1f}" if "params" in row else ""
        cells = [module, row["model"], size, *_cells(row), _cell(other)]
        lines.append("| " + " | ".join(cells) + " |")
        if frozen_list(row):
            frozen.append(f"- **{row['model']}** ({row['channels']} can be removed): {frozen_list(row)}")
    command = "python benchmarks/prunability_timm.py --table docs/prunability_timm.md"
    return HEAD.format(command=command, summary=summary(rows), rows="\n".join(lines), frozen="\n".join(frozen))


def network_rows(rows: Rows) -> list[str]:
    """A table of the networks that sirfp pruned."""
    lines = ["| network | M params | kept | least | equal | s |", "| --- | ---: | ---: | ---: | --- | ---: |"]
    for row in sorted((row for (tool, _), row in rows.items() if tool == "sirfp"), key=lambda row: row["model"]):
        size = f"{row['params'] / 1e6:.1f}" if "params" in row else ""
        lines.append("| " + " | ".join([row["model"], size, *_cells(row)]) + " |")
    return lines


def _cells(row: dict[str, Any]) -> list[str]:
    if row.get("error"):
        return ["", "", f"fails: {short(row['error'])}", ""]
    return [f"{row['kept']:.2f}", f"{row['least']:.2f}", equal_cell(row, "norms"), f"{row['seconds']:.1f}"]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"fails: {short(row['error'])}" if row.get("error") else f"runs, {row['kept']:.2f} kept"
