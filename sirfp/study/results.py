"""What a study found: runs joined over their seeds, as numbers, CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..reporting.tables import Table, giga, mega
from .cells import Cells
from .grid import Job, Study


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        task, model, metric: of the study.
        criterion: "dense" for the networks that pruning starts from, "unpruned" for those only trained on.
        budget: the share of FLOPs asked for; None of dense ones, 1 of those only trained on.
        seeds: of the runs that are done.
        mean, std: of the metric over seeds; the standard deviation is the sample's, None of one run.
        change, change_std: of the metric against the dense network of the same seed.
        cut: mean of the metric right after the last pruning, before fine-tuning.
        flops, params: means of one call's multiply-adds, and of the parameters.
        flops_kept, params_kept: as shares of the dense network's.
        latency: mean seconds of one call, measured at the end of each run.
        speedup: mean of dense latency / pruned latency, the two measured in turns.
    """

    task: str
    model: str
    metric: str
    criterion: str
    budget: float | None
    seeds: tuple[int, ...]
    mean: float
    std: float | None
    change: float | None = None
    change_std: float | None = None
    cut: float | None = None
    flops: float | None = None
    flops_kept: float | None = None
    params: float | None = None
    params_kept: float | None = None
    latency: float | None = None
    speedup: float | None = None

    @property
    def dense(self) -> bool:
        """Whether it is of dense networks."""
        return self.budget is None

    @property
    def pruned(self) -> bool:
        """Whether it is of pruned networks."""
        return self.budget is not None and self.budget < 1


def rows(study: Study, cells: Cells) -> list[Row]:
    """Every row of which a run is done: in each task and model the dense one, then the study's order."""
    found: dict[tuple, list[tuple[Job, dict[str, Any]]]] = {}
    order = sorted(enumerate(study.jobs), key=lambda item: (_place(study, item[1]), not item[1].dense, item[0]))
    for _, job in order:
        result = cells.result(job)
        if result is not None:
            found.setdefault((job.task, job.model, job.criterion, job.budget), []).append((job, result))
    result = []
    for (task, model, _, _), runs in found.items():
        siblings = [r for key, group in found.items() if key[:2] == (task, model) for j, r in group if j.prunes]
        row = _dense(runs, siblings) if runs[0][0].dense else _pruned(runs, cells)
        result.append(row if row.budget != 1 else replace(row, **_whole(siblings)))
    return result


def _place(study: Study, job: Job) -> int:
    return next(i for i, other in enumerate(study.jobs) if (other.task, other.model) == (job.task, job.model))


def _dense(runs: Sequence[tuple[Job, Mapping[str, Any]]], siblings: Sequence[Mapping[str, Any]]) -> Row:
    """The dense row; what its own runs do not measure comes from the first row of those that pruned it."""
    job = runs[0][0]
    scores = [result["rows"]["dense"]["metrics"][job.metric] for _, result in runs]
    name = *(job.task, job.model, job.metric, "dense", None), tuple(j.seed for j, _ in runs)
    return Row(*name, statistics.fmean(scores), _std(scores), **_whole(siblings))


def _whole(siblings: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """What a network that is not pruned costs, as the runs that prune it have measured."""
    starts = [next(iter(result["rows"].values())) for result in siblings]
    costs = {key: _mean([row.get(key) for row in starts]) for key in ("flops", "params", "latency")}
    return costs | {key: 1.0 if starts else None for key in ("flops_kept", "params_kept", "speedup")}


def _pruned(runs: Sequence[tuple[Job, Mapping[str, Any]]], cells: Cells) -> Row:
    job = runs[0][0]
    ends = [list(result["rows"].values())[-1] for _, result in runs]
    scores = [end["metrics"][job.metric] for end in ends]
    dense = [cells.result(j.needs) for j, _ in runs]
    pairs = [(s, d["rows"]["dense"]["metrics"][job.metric]) for s, d in zip(scores, dense, strict=True) if d]
    changes = [score - before for score, before in pairs]
    before = [next(iter(result["rows"].values())) for _, result in runs]
    return Row(
        *(job.task, job.model, job.metric, job.criterion, job.budget, tuple(j.seed for j, _ in runs)),
        statistics.fmean(scores),
        _std(scores),
        change=_mean(changes),
        change_std=_std(changes),
        cut=_mean([result["rows"].get("pruned", {}).get("metrics", {}).get(job.metric) for _, result in runs]),
        **{key: _mean([result[key][1] for _, result in runs if key in result]) for key in ("flops", "params")},
        **{
            f"{key}_kept": _mean([_ratio(*result[key][::-1]) for _, result in runs if key in result])
            for key in ("flops", "params")
        },
        latency=_mean([end.get("latency") for end in ends]),
        speedup=_mean([_ratio(b.get("latency"), e.get("latency")) for b, e in zip(before, ends, strict=True)]),
    )


def table(found: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    columns = ("task", "criterion", "asked", "result", "change", "GFLOPs", "M params", "ms")
    body = tuple(
        (
            f"{row.task}, {row.model}: {row.metric.rpartition('/')[2]}",
            row.criterion,
            number(row.budget),
            mean_and_std(row.mean, row.std),
            signed(row.change),
            giga(row.flops) if row.flops is not None else "-",
            mega(row.params) if row.params is not None else "-",
            number(row.latency and 1e3 * row.latency, 1),
        )
        for row in found
    )
    return Table(columns, body)


def to_csv(found: Sequence[Row]) -> str:
    """The rows as CSV, latency in seconds, empty where nothing is known."""
    file = io.StringIO()
    names = list(Row.__dataclass_fields__)
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow({**asdict(row), "seeds": " ".join(map(str, row.seeds))})
    return file.getvalue()


def to_markdown(found: Sequence[Row]) -> str:
    """The rows as Markdown, a table for each task and model."""
    parts = []
    for task, model in dict.fromkeys((row.task, row.model) for row in found):
        mine = [row for row in found if (row.task, row.model) == (task, model)]
        quality = "after the cut", mine[0].metric, "change"
        columns = "criterion", "asked", *quality, "FLOPs", "params", "speed-up", "seeds"
        body = tuple(
            (
                row.criterion,
                number(row.budget),
                number(row.cut),
                mean_and_std(row.mean, row.std),
                signed(row.change),
                number(row.flops_kept, 3),
                number(row.params_kept, 3),
                number(row.speedup),
                str(len(row.seeds)),
            )
            for row in mine
        )
        parts.append(f"## {task}, {model}\n\n{Table(columns, body).markdown()}\n")
    return "\n".join(parts)


def to_data(study: Study, cells: Cells, found: Sequence[Row]) -> dict[str, Any]:
    """The rows, and what every run left, as plain data for JSON."""
    runs = []
    for job in study.jobs:
        state = cells.state(job)
        run = {"name": job.name, "state": state, "folder": str(cells.folder(job).relative_to(cells.root))}
        if state == "done":
            result = cells.result(job)
            run |= {key: result[key] for key in ("seconds", "rows", "flops", "params", "widths") if key in result}
        elif state == "failed":
            run["cause"] = cells.failure(job)["cause"]
        runs.append(run)
    return _finite({"study": study.name, "rows": [asdict(row) for row in found], "runs": runs})


def number(value: float | None, digits: int = 2) -> str:
    """A number as text, "-" where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference as text, "+1.20"."""
    return "-" if value is None else f"{value:+.2f}"


def mean_and_std(mean: float | None, std: float | None) -> str:
    """A mean with its standard deviation, "39.30 ± 0.41"."""
    return number(mean) if std is None else f"{number(mean)} ± {number(std)}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over and under else None


def _finite(value: Any) -> Any:
    """Plain data in which what is not finite is None, as JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
