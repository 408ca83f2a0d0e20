"""The Markdown table of `prunability_libraries.py`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from library_models import LIBRARIES
from prunability import Row, difference_cell, frozen_list, short

from sirfp.verify.proof import EQUAL

Rows = Mapping[tuple[str, str], Row]
HALF = 0.5005
DOUBLE = 1e-9
"""Largest difference between equal networks in double precision, relative to the largest output."""
EFFECT = 0.001
"""Least difference between the pruned and the dense model, relative to the largest output."""

RETURNED = "what stays whole is returned; `outputs=` can say what counts"

INTRO = """Models of {libraries} were tried with random weights and small inputs, on a processor. Each model is traced,
pruned by a random plan to half of its FLOPs (or to the least it can have), and compared with the masked dense
model. It is saved, loaded into a new dense model, compared again, and trained for one step, forward and
backward in training mode. Random scores choose the channels, since only the structure is tried, not the
accuracy. *Kept* is the share of FLOPs that is left, *counted* the same share as counted by PyTorch where it
differs by more than 0.01, *least* the share that the smallest plan leaves. *Equal* is the largest difference
from the masked model, which takes its means, norms and softmax over the channels that are left, relative to
the largest output; a difference above {tolerance:g} counts as equal where rounding errors explain it, as in
`sirfp verify`, and what they make stands beside it. *Double* is the same in double precision, empty where the
model's code computes in single precision. *s* is the processor time to find the groups, *all* that of everything,
in seconds. {note}"""

HEAD = """# Which models of other libraries can be pruned

    {command}

{intro}

{summary}

| library | model | M params | MFLOPs | groups | kept | counted | least | equal | double | s | all | cause |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- | ---: | ---: | --- |
{rows}

## What stays whole, and why
Of the models that do not reach half of their FLOPs, these channels stay whole in every plan. Outputs of the model are
not listed.

{frozen}
"""


def good(row: Row) -> bool:
    """Whether a model was pruned to half, equals its masked dense model, was loaded again and trains.

    A model whose output the cut does not change is not good, since nothing was compared.
    """
    if row.get("error") or row["kept"] > HALF or row["effect"] <= EFFECT:
        return False
    return row["equal"] and (row["double"] is None or row["double"] < DOUBLE)


def summary(rows: Rows) -> str:
    """The number of models of each library that passed."""
    number = sum(map(good, rows.values()))
    lines = [
        f"{number} of {len(rows)} models ({number / max(1, len(rows)):.1%}) were pruned to half of their FLOPs, equal "
        "to the masked model, loaded again and trained."
    ]
    for library in LIBRARIES:
        mine = [row for (its, _), row in rows.items() if its == library]
        if mine:
            lines.append(f"- {library}: {sum(map(good, mine))} of {len(mine)}")
    return "\n".join(lines)


def table(rows: Rows, note: str = "") -> str:
    """The page; `note` says what measured the rows."""
    command = "python benchmarks/prunability_libraries.py --table docs/prunability_libraries.md"
    order = sorted(rows, key=lambda key: (list(LIBRARIES).index(key[0]), key[1]))
    frozen = [
        f"- **{rows[key]['model']}** ({rows[key]['channels']} can be removed): {frozen_list(rows[key])}"
        for key in order
        if not good(rows[key]) and frozen_list(rows[key])
    ]
    libraries = ", ".join(library for library in LIBRARIES if any(its == library for its, _ in rows))
    return HEAD.format(
        command=command,
        intro=textwrap.fill(INTRO.format(libraries=libraries, tolerance=EQUAL, note=note), 120, break_on_hyphens=False),
        summary=summary(rows),
        rows="\n".join(_line(rows[key]) for key in order),
        frozen="\n".join(frozen) or "None.",
    )


def _line(row: Row) -> str:
    cells = [row["library"], row["model"]]
    if row.get("error"):
        stage = row.get("stage") or "measure"
        return "| " + " | ".join([*cells, *[""] * 10, f"{stage}: {short(row['error'])}"]) + " |"
    counted = f"{row['counted']:.2f}" if abs(row["counted"] - row["kept"]) > 0.01 else ""
    cells += [f"{row['params'] / 1e6:.1f}", f"{row['flops'] / 1e6:.0f}", str(row["groups"]), f"{row['kept']:.2f}"]
    double = "" if row["double"] is None else f"{row['double']:.0e}"
    cells += [counted, f"{row['least']:.2f}", difference_cell(row), double, f"{row['processor_seconds']:.1f}"]
    cells += [f"{row['all_seconds']:.0f}", "" if good(row) else "see below" if frozen_list(row) else RETURNED]
    return "| " + " | ".join(cells) + " |"
