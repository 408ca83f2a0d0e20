"""The report of a study: one HTML page that needs no network, and the same as CSV and JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..files.whole import whole_file
from ..reporting.tables import giga, mega
from . import charts, pictures
from .cells import Cells
from .grid import Study
from .results import Row, mean_and_std, number, rows, signed, to_csv, to_data, to_markdown

NAME, CSV, JSON, MARKDOWN = "report.html", "results.csv", "results.json", "results.md"
COLUMNS = (
    ("task", "Task, model"), ("criterion", "Criterion"), ("budget", "Asked"), ("metric", "Result"),
    ("change", "Change"), ("cut", "After the cut"), ("flops", "GFLOPs"), ("flops-kept", "kept"),
    ("params", "M params"), ("params-kept", "kept"), ("latency", "Latency, ms"), ("speedup", "Speed-up"),
    ("seeds", "Seeds"),
)  # fmt: skip
WORDS = 2
"""Columns of text; the others are of numbers."""


def write(study: Study, cells: Cells) -> None:
    """Writes the report of what is done so far to the study's folder."""
    found = rows(study, cells)
    texts = {
        NAME: page(study, cells, found),
        CSV: to_csv(found),
        JSON: json.dumps(to_data(study, cells, found), indent=1, allow_nan=False) + "\n",
        MARKDOWN: to_markdown(found),
    }
    for name, text in texts.items():
        with whole_file(cells.root / name) as beside:
            beside.write_text(text, encoding="utf-8")


def page(study: Study, cells: Cells, found: Sequence[Row]) -> str:
    """The whole page as HTML; all that comes from outside is escaped."""
    beside = Path(__file__).parent
    style, script = ((beside / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    places = list(dict.fromkeys((row.task, row.model) for row in found))
    sections = [_place(study, cells, [row for row in found if (row.task, row.model) == place]) for place in places]
    links = "".join(f'<a href="#{_anchor(*place)}">{escape(place[0])}</a>' for place in places)
    title = f"Study {study.name}"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    body = [
        f"<header><div><h1>{escape(title)}</h1><p>{escape(_standing(study, cells))}</p></div>"
        '<button id="theme" type="button">Dark or light</button></header>',
        f'<nav aria-label="Tasks">{links}</nav>' if len(places) > 1 else "",
        "<main>",
        _results(found) if found else "<p>No run is done yet.</p>",
        *sections,
        _failures(study, cells),
        "<section><h2>Settings</h2><details><summary>The study's file</summary>"
        f"<pre>{escape(study.text)}</pre></details></section></main>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>{script}</script></body></html>\n"
    )


def _standing(study: Study, cells: Cells) -> str:
    states = [cells.state(job) for job in study.jobs]
    left = len(states) - states.count("done") - states.count("failed")
    counts = [f"{states.count('done')} of {len(states)} runs done"]
    counts += [f"{states.count('failed')} failed"] if "failed" in states else []
    counts += [f"{left} left"] if left else []
    return f"{', '.join(counts)}. Written {time.strftime('%Y-%m-%d %H:%M')}."


def _results(found: Sequence[Row]) -> str:
    best = {}
    for row in found:
        if row.pruned:
            key = row.task, row.model, row.budget
            best[key] = max(best.get(key, row.mean), row.mean)
    head = "".join(
        f'<th scope="col" data-key="{key}"{"" if i < WORDS else " class=number"}>'
        f'<button type="button">{escape(name)}</button></th>'
        for i, (key, name) in enumerate(COLUMNS)
    )
    body = "".join(_line(row, row.pruned and row.mean == best[row.task, row.model, row.budget]) for row in found)
    several = any(row.std is not None for row in found)
    deviation = " ± the sample's standard deviation" if several else ""
    note = (
        f"Result: mean over seeds{deviation}; the best of each budget is bold. Change: against the dense network of "
        "the same seed before pruning, which was trained for fewer iterations (unpruned: that network trained on for "
        "as many). FLOPs are multiply-adds of one image. Latency: dense and pruned called in turns at the end of each "
        "run; runs side by side slow each other down, the speed-up less so."
    )
    return (
        '<section><h2>Results</h2><div class="scroll" tabindex="0" role="region" aria-label="Results">'
        f'<table id="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="note">{note}</p></section>'
    )


def _line(row: Row, best: bool) -> str:
    cells = [
        (f"{row.task}, {row.model}", (row.task, row.model)),
        (row.criterion, row.criterion),
        (row.budget, number(row.budget)),
        (row.mean, (mean_and_std(row.mean, row.std), row.metric.rpartition("/")[2])),
        (row.change, _signed(row)),
        (row.cut, number(row.cut)),
        (row.flops, "-" if row.flops is None else giga(row.flops)),
        (row.flops_kept, _percent(row.flops_kept)),
        (row.params, "-" if row.params is None else mega(row.params)),
        (row.params_kept, _percent(row.params_kept)),
        (row.latency, number(row.latency and 1e3 * row.latency, 1)),
        (row.speedup, "-" if row.speedup is None else f"{row.speedup:.2f}×"),
        (len(row.seeds), str(len(row.seeds))),
    ]
    made = []
    for i, (value, text) in enumerate(cells):
        kind = "" if i < WORDS else ' class="number"'
        first, second = text if isinstance(text, tuple) else (text, "")
        shown = escape(first) + (f"<small>{escape(second)}</small>" if second else "")
        made.append(f'<td{kind} data-value="{escape("" if value is None else str(value))}">{shown}</td>')
    kinds = [name for name, holds in (("full", row.dense), ("best", best)) if holds]
    return f'<tr class="{" ".join(kinds)}">{"".join(made)}</tr>' if kinds else f"<tr>{''.join(made)}</tr>"


def _place(study: Study, cells: Cells, found: Sequence[Row]) -> str:
    """The section of one task's model."""
    task, model = found[0].task, found[0].model
    here = [job for job in study.cells if (job.task, job.model) == (task, model)]
    jobs = [job for job in here if job.prunes and cells.state(job) == "done"]
    heading = f'<section id="{_anchor(task, model)}"><h2>{escape(task)}: {escape(model)}</h2>'
    if not jobs:
        return f"{heading}<p>No pruning is done yet.</p></section>"
    parts = [f"<h3>Trade-off</h3>{charts.trade_off(found)}"]
    several = len({job.budget for job in jobs}) > 1
    widths: dict[str, list] = {}
    shown: dict[str, Path] = {}
    for job in jobs:
        name = f"{job.criterion} {job.budget:g}" if several else job.criterion
        widths.setdefault(name, []).append(cells.result(job)["widths"])
        shown.setdefault(name, cells.folder(job))
    parts.append(
        "<details><summary><h3>Channels that each layer keeps</h3></summary>"
        f'<p class="note">Shaded by the share kept.</p>{charts.kept_channels(widths)}</details>'
    )
    drawn = {name: pictures.matrices(folder, name) for name, folder in shown.items()}
    if any(drawn.values()):
        parts.append(
            "<details><summary><h3>Redundancy of the most pruned layers</h3></summary>"
            '<p class="note">Each pixel is a pair of channels: how alike their feature maps are, from 0 (dark) to 1 '
            "(yellow), before pruning and in the fine-tuned network. Channels stand in the order in which the greedy "
            "clique would remove them, first at the top left; the strip is blue where this criterion kept one.</p>"
            + "".join(_block(name, html) for name, html in drawn.items() if html)
            + "</details>"
        )
    drawn = {name: pictures.predictions(folder, f"Predictions of {name}, {task}") for name, folder in shown.items()}
    if any(drawn.values()):
        blocks = "".join(_block(name, html) for name, html in drawn.items() if html)
        parts.append(f"<details><summary><h3>Predictions</h3></summary>{blocks}</details>")
    return f"{heading}{''.join(parts)}</section>"


def _block(name: str, html: str) -> str:
    return f'<h4>{escape(name)}</h4><div class="figures">{html}</div>'


def _failures(study: Study, cells: Cells) -> str:
    failed = [(job.name, cells.failure(job)) for job in study.jobs if cells.state(job) == "failed"]
    if not failed:
        return ""
    items = "".join(
        f"<details><summary><b>{escape(name)}</b>: {escape(why['cause'])}</summary>"
        f"<pre>{escape(chr(10).join(why['tail']))}</pre></details>"
        for name, why in failed
    )
    return f'<section><h2>Failed runs</h2><p class="note">With the end of what each said.</p>{items}</section>'


def _anchor(task: str, model: str) -> str:
    return f"{task}--{model}"


def _signed(row: Row) -> str:
    text = signed(row.change)
    return text if row.change_std is None else f"{text} ± {number(row.change_std)}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
