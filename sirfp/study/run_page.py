"""One HTML page about a single training run with prunings: its table, its pictures and its settings."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..files.whole import whole_file
from ..reporting.provenance import versions
from ..reporting.tables import Row, Table, comparison
from . import pictures
from .frame import frame, scrolling

NAME = "report.html"
PICTURES = (
    ("predictions.png", "Predictions"),
    ("kept_channels.png", "Channels that each layer keeps"),
    ("curves.png", "Loss when one group of channels is cut alone"),
)
"""The pictures of a run, if it has drawn them: (file, title)."""


def write(folder: Path, title: str, notes: Sequence[str] = (), metrics: Sequence[str] = ()) -> Path:
    """Writes the page of a finished run into its folder; returns the page's path.

    Args:
        folder: the output folder of the run, with the files of the hook `Report`.
        title: the title of the page.
        notes: sentences below the table.
        metrics: metrics in the table; all by default.
    """
    with whole_file(folder / NAME) as beside:
        beside.write_text(page(folder, title, notes, metrics), encoding="utf-8")
    return folder / NAME


def rows(folder: Path) -> dict[str, Row]:
    """Returns the networks of a finished run, by name: "dense", "pruned" and "fine-tuned"."""
    found = json.loads((folder / "pruning.json").read_text())
    return {n: Row(n, r["flops"], r["params"], r.get("metrics", {}), r.get("latency")) for n, r in found.items()}


def page(folder: Path, title: str, notes: Sequence[str] = (), metrics: Sequence[str] = ()) -> str:
    """Returns the page as HTML, see `write`; all names and texts are escaped."""
    explained = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    drawn = [(heading, pictures.picture(folder / name, heading)) for name, heading in PICTURES]
    shown = [f"<section><h2>{escape(name)}</h2>{scrolling(name, image)}</section>" for name, image in drawn if image]
    body = [
        f"<main><section><h2>Results</h2>{_table(comparison(rows(folder).values(), metrics))}{explained}</section>",
        *shown,
        "<section><h2>Settings</h2><details><summary>The run's config</summary>"
        f"<pre>{escape((folder / 'config.yaml').read_text())}</pre></details></section></main>",
    ]
    written = time.strftime("%Y-%m-%d %H:%M %Z").strip()
    return frame(title, f"Written {written} by {versions()}.", body)


def _table(table: Table) -> str:
    """A table as HTML: names in the first column, numbers in the others."""
    kinds = ("", *[' class="number"'] * (len(table.columns) - 1))
    head = "".join(f'<th scope="col"{kind}>{escape(c)}</th>' for kind, c in zip(kinds, table.columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return scrolling("Results", f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
