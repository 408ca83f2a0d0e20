"""Writes the report of a study: one HTML page that loads no other file, and the numbers as CSV, JSON and Markdown."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..files.whole import whole_file
from ..reporting.progress import duration
from ..reporting.provenance import versions
from ..reporting.tables import giga, mega
from . import charts, pictures
from .frame import frame, scrolling
from .grid import Study
from .results import (
    Row,
    mean_and_std,
    milliseconds,
    number,
    percent,
    rows,
    signed,
    times,
    to_csv,
    to_data,
    to_markdown,
)
from .run_folders import RunFolders

NAME, CSV, JSON, MARKDOWN = "report.html", "results.csv", "results.json", "results.md"
COLUMNS: tuple[tuple[str, str, Callable[[Row], tuple[Any, ...]]], ...] = (
    ("task", "Task, model", lambda row: (f"{row.task}, {row.model}", row.task, row.model)),
    ("criterion", "Criterion", lambda row: (row.criterion, row.criterion)),
    ("budget", "Budget", lambda row: (row.budget, percent(row.budget))),
    ("metric", "Result", lambda row: (row.mean, mean_and_std(row.mean, row.std), row.metric.rpartition("/")[2])),
    ("change", "Change", lambda row: (row.change, _change(row))),
    ("cut", "After the cut", lambda row: (row.cut, number(row.cut), row.cut_dense and f"of {number(row.cut_dense)}")),
    ("flops", "GFLOPs", lambda row: (row.flops, "-" if row.flops is None else giga(row.flops))),
    ("flops-kept", "kept", lambda row: (row.flops_kept, percent(row.flops_kept))),
    ("params", "M\u00a0params", lambda row: (row.params, "-" if row.params is None else mega(row.params))),
    ("params-kept", "kept", lambda row: (row.params_kept, percent(row.params_kept))),
    ("latency", "Latency, ms", lambda row: (row.latency, milliseconds(row.latency), _dense_latency(row))),
    ("speedup", "Speed-up", lambda row: (row.speedup, times(row.speedup))),
    ("seeds", "Seeds", lambda row: (len(row.seeds), str(len(row.seeds)))),
)
"""Columns of the table of results: (key, title, function from a row to the value to sort by, the text and, if any, a
second text in small print)."""
TEXT_COLUMNS = 2
"""Number of columns that hold text, at the left; the others hold numbers."""


def write(study: Study, folders: RunFolders) -> None:
    """Writes the report of all finished runs into the study's folder."""
    found = rows(study, folders)
    texts = {
        NAME: page(study, folders, found),
        CSV: to_csv(found),
        JSON: json.dumps(to_data(study, folders, found), indent=1, allow_nan=False) + "\n",
        MARKDOWN: to_markdown(found),
    }
    for name, text in texts.items():
        with whole_file(folders.root / name) as beside:
            beside.write_text(text, encoding="utf-8")


def page(study: Study, folders: RunFolders, found: Sequence[Row]) -> str:
    """Returns the whole page as HTML; names, settings and output of runs are escaped."""
    models = list(dict.fromkeys((row.task, row.model) for row in found))
    sections = [_model_section(study, folders, [r for r in found if (r.task, r.model) == model]) for model in models]
    links = "".join(f'<a href="#{_anchor(*model)}">{escape(model[0])}</a>' for model in models)
    body = [
        f'<nav aria-label="Tasks">{links}</nav>' if len(models) > 1 else "",
        "<main>",
        _results(found) if found else "<p>No run is done yet.</p>",
        *sections,
        _failures(study, folders),
        "<section><h2>Settings</h2><details><summary>The study's file</summary>"
        f"<pre>{escape(study.text)}</pre></details></section></main>",
    ]
    return frame(f"Study {study.name}", _status_line(study, folders), body)


def _status_line(study: Study, folders: RunFolders) -> str:
    """The number of runs that are done, failed and left, their time, the date, and what wrote the page."""
    states = [folders.state(job) for job in study.jobs]
    left = len(states) - states.count("done") - states.count("failed")
    counts = [f"{states.count('done')} of {len(states)} runs done"]
    counts += [f"{states.count('failed')} failed"] if "failed" in states else []
    counts += [f"{left} left"] if left else []
    seconds = sum(result.get("seconds") or 0 for job in study.jobs if (result := folders.result(job)) is not None)
    spent = f", {duration(seconds)} of run time" if seconds else ""
    return f"{', '.join(counts)}{spent}. Written {time.strftime('%Y-%m-%d %H:%M %Z').strip()} by {versions()}."


def _results(found: Sequence[Row]) -> str:
    """The table of all rows. For each task, model and budget, the highest mean is bold."""
    rivals: dict[tuple[str, str, float | None], list[float]] = {}
    for row in found:
        if row.pruned:
            rivals.setdefault((row.task, row.model, row.budget), []).append(row.mean)
    highest = {key: max(means) for key, means in rivals.items() if len(means) > 1}
    head = "".join(
        f'<th scope="col" data-key="{key}"{"" if i < TEXT_COLUMNS else " class=number"}>'
        f'<button type="button">{escape(name)}</button></th>'
        for i, (key, name, _) in enumerate(COLUMNS)
    )
    body = "".join(
        _table_row(row, row.pruned and row.mean == highest.get((row.task, row.model, row.budget))) for row in found
    )
    several = any(row.std is not None for row in found)
    deviation = " ± the sample's standard deviation" if several else ""
    note = (
        f"Budget: share of the FLOPs to keep. Result: mean over seeds{deviation}"
        f"{'; the best of several with one budget is bold' if highest else ''}. After the cut: before fine-tuning, "
        "of the dense network's result. "
        "Change: difference to the dense network of the same seed before pruning, which was trained for fewer "
        'iterations; the row "unpruned" is this network trained on for as many iterations as a pruning run. FLOPs '
        "are multiply-adds for one image. Latency: of the pruned network and, in small print, of the dense one, "
        "called in turns at the end of the same runs; the speed-up is their ratio. Runs at the same time slow each "
        "other down, so compare speed-ups, not milliseconds of different rows."
    )
    rows = f'<table id="results"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<section><h2>Results</h2>{scrolling("Results", rows)}<p class="note">{note}</p></section>'


def _table_row(row: Row, best: bool) -> str:
    """A row of the table of results. Each cell also holds its unformatted value, which `page.js` uses for sorting."""
    cells = []
    for i, (_, _, cell) in enumerate(COLUMNS):
        value, text, *small = cell(row)
        kind = "" if i < TEXT_COLUMNS else ' class="number"'
        content = escape(text) + "".join(f"<small>{escape(part)}</small>" for part in small if part)
        cells.append(f'<td{kind} data-value="{escape("" if value is None else str(value))}">{content}</td>')
    kinds = [name for name, holds in (("full", row.dense), ("best", best)) if holds]
    return f'<tr class="{" ".join(kinds)}">{"".join(cells)}</tr>' if kinds else f"<tr>{''.join(cells)}</tr>"


def _model_section(study: Study, folders: RunFolders, found: Sequence[Row]) -> str:
    """The section of one model of a task: trade-off, kept channels, redundancy matrices, predictions."""
    task, model = found[0].task, found[0].model
    runs = [job for job in study.cells if job.prunes and (job.task, job.model) == (task, model)]
    done = [(job, result) for job in runs if (result := folders.result(job)) is not None]
    heading = f'<section id="{_anchor(task, model)}"><h2>{escape(task)}: {escape(model)}</h2>'
    if not done:
        return f"{heading}<p>No pruning is done yet.</p></section>"
    several = len({job.budget for job, _ in done}) > 1
    widths: dict[str, list] = {}
    first_seed: dict[str, Path] = {}
    for job, result in done:
        name = f"{job.criterion} {job.budget:g}" if several else job.criterion
        widths.setdefault(name, []).append(result["widths"])
        first_seed.setdefault(name, folders.folder(job))
    parts = [
        f'<h3>Trade-off</h3><div class="beside">{charts.trade_off(found)}<p class="note">{charts.explanation(found)}'
        "</p></div>",
        "<details><summary><h3>Channels that each layer keeps</h3></summary>"
        f'<p class="note">Shaded by the share kept.</p>{charts.kept_channels(widths)}</details>',
        _figures(
            "Redundancy of the most pruned layers",
            "Each pixel is a pair of channels; its colour is the similarity of their feature maps, from 0 (dark) to 1 "
            "(yellow), before pruning and in the fine-tuned network. Channels are sorted by the order in which the "
            "greedy clique search would remove them, the first at the top left. The strip is blue for channels that "
            "this criterion kept.",
            {name: pictures.matrices(folder, name) for name, folder in first_seed.items()},
        ),
        _figures(
            "Predictions",
            "",
            {name: pictures.predictions(dir_, f"Predictions of {name}, {task}") for name, dir_ in first_seed.items()},
        ),
    ]
    return f"{heading}{''.join(parts)}</section>"


def _figures(title: str, note: str, figures: Mapping[str, str]) -> str:
    """A part of a section, initially folded: a note, then figures {name: HTML}; "" if all figures are ""."""
    blocks = "".join(
        f'<h4>{escape(name)}</h4><div class="figures">{html}</div>' for name, html in figures.items() if html
    )
    note = f'<p class="note">{note}</p>' if note else ""
    return f"<details><summary><h3>{title}</h3></summary>{note}{blocks}</details>" if blocks else ""


def _failures(study: Study, folders: RunFolders) -> str:
    """The section of failed runs, with causes and last lines of output; "" if no run failed."""
    failed = ((job.name, folders.failure(job)) for job in study.jobs if folders.state(job) == "failed")
    items = "".join(
        f"<details><summary><b>{escape(name)}</b>: {escape(failure['cause'])}</summary>"
        f"<pre>{escape(chr(10).join(failure['tail']))}</pre></details>"
        for name, failure in failed
        if failure is not None
    )
    note = '<p class="note">Open one for the last lines of its output.</p>'
    return f"<section><h2>Failed runs</h2>{note}{items}</section>" if items else ""


def _anchor(task: str, model: str) -> str:
    """The id of a model's section."""
    return f"{task}--{model}"


def _change(row: Row) -> str:
    text = signed(row.change)
    return text if row.change_std is None else f"{text} ± {number(row.change_std)}"


def _dense_latency(row: Row) -> str:
    return "" if row.latency_dense is None else f"of {milliseconds(row.latency_dense)}"
