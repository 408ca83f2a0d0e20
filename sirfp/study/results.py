"""The results of a study, averaged over seeds, as numbers, CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..reporting.tables import Table, giga, mega
from .grid import Job, Study
from .run_folders import RunFolders

UNITS = {
    "budget": ("budget_percent", 0.01),
    "flops": ("gflops", 1e9),
    "flops_kept": ("flops_kept_percent", 0.01),
    "params": ("params_millions", 1e6),
    "params_kept": ("params_kept_percent", 0.01),
    "latency": ("latency_ms", 1e-3),
    "latency_dense": ("latency_dense_ms", 1e-3),
}
"""{field of `Row`: (column of the CSV, its unit)}: the units of the tables."""


@dataclass(frozen=True)
class Row:
    """The average over runs that differ only in their seed.

    Attributes:
        task, model, metric: names in the study.
        criterion: name of the row in the study; "dense" for networks before pruning, "unpruned" for control runs,
            which train the dense network further.
        budget: share of FLOPs to keep; None for dense networks, 1 for control runs.
        seeds: seeds of the runs that are done.
        mean, std: mean and sample standard deviation of the metric over seeds; std is None for one run.
        change, change_std: mean and sample standard deviation of (metric - metric of the dense network of the same
            seed).
        cut: mean of the metric right after the last cut, before fine-tuning.
        cut_dense: mean of the metric of the dense networks of the same seeds; None unless `cut` is known.
        flops, params: mean number of multiply-adds of one call, and mean number of parameters.
        flops_kept, params_kept: shares of the dense network's FLOPs and parameters.
        latency: mean seconds of one call, measured at the end of each run.
        latency_dense: mean seconds of one call of the dense network, measured in turns with `latency`.
        speedup: latency_dense / latency.
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
    cut_dense: float | None = None
    flops: float | None = None
    flops_kept: float | None = None
    params: float | None = None
    params_kept: float | None = None
    latency: float | None = None
    latency_dense: float | None = None
    speedup: float | None = None

    @property
    def dense(self) -> bool:
        """True for dense networks."""
        return self.budget is None

    @property
    def pruned(self) -> bool:
        """True for pruned networks, also for those that were trained from scratch."""
        return self.budget is not None and self.budget < 1


def rows(study: Study, folders: RunFolders) -> list[Row]:
    """Averages the runs that are done: a row per task, model, criterion and budget with at least one such run.

    For each task and model, the row of the dense networks is first; the others are in study order.
    """
    found: dict[tuple, list[tuple[Job, dict[str, Any]]]] = {}
    order = sorted(enumerate(study.jobs), key=lambda item: (_model_index(study, item[1]), not item[1].dense, item[0]))
    for _, job in order:
        result = folders.result(job)
        if result is not None:
            found.setdefault((job.task, job.model, job.criterion, job.budget), []).append((job, result))
    averaged = []
    for (task, model, _, _), runs in found.items():
        prunings = [r for key, group in found.items() if key[:2] == (task, model) for j, r in group if j.prunes]
        row = _dense_row(runs, prunings) if runs[0][0].dense else _pruned_row(runs, folders)
        averaged.append(row if row.budget != 1 else replace(row, **_dense_costs(prunings)))
    return averaged


def _model_index(study: Study, job: Job) -> int:
    """The position in the study of the first run of the same task and model."""
    return next(i for i, other in enumerate(study.jobs) if (other.task, other.model) == (job.task, job.model))


def _dense_row(runs: Sequence[tuple[Job, Mapping[str, Any]]], prunings: Sequence[Mapping[str, Any]]) -> Row:
    """The row of dense networks. Its costs come from the results of pruning runs, which measure the dense network."""
    job = runs[0][0]
    scores = [result["rows"]["dense"]["metrics"][job.metric] for _, result in runs]
    seeds = tuple(j.seed for j, _ in runs)
    mean, std = statistics.fmean(scores), _std(scores)
    return Row(job.task, job.model, job.metric, "dense", None, seeds, mean, std, **_dense_costs(prunings))


def _dense_costs(prunings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Costs of the dense network, measured at the start of pruning runs, as keyword arguments of `Row`."""
    starts = [next(iter(result["rows"].values())) for result in prunings]
    costs = {key: _mean([row.get(key) for row in starts]) for key in ("flops", "params", "latency")}
    return costs | {key: 1.0 if starts else None for key in ("flops_kept", "params_kept", "speedup")}


def _pruned_row(runs: Sequence[tuple[Job, Mapping[str, Any]]], folders: RunFolders) -> Row:
    """The row of pruning runs or runs from scratch of one name and budget, or of control runs."""
    job = runs[0][0]
    results = [result for _, result in runs]
    starts = [next(iter(result["rows"].values())) for result in results]
    ends = [list(result["rows"].values())[-1] for result in results]
    scores = [end["metrics"][job.metric] for end in ends]
    changes = [score - dense for (j, _), score in zip(runs, scores, strict=True) for dense in _dense_score(j, folders)]
    pairs = [(s.get("latency"), e.get("latency")) for s, e in zip(starts, ends, strict=True)]
    timed = [(before, after) for before, after in pairs if before and after]
    dense_latency, latency = (_mean([pair[i] for pair in timed]) for i in (0, 1))
    after_cut = [result["rows"].get("pruned", {}).get("metrics", {}).get(job.metric) for result in results]
    (flops, flops_kept), (params, params_kept) = (_mean_cost(results, key) for key in ("flops", "params"))
    return Row(
        job.task,
        job.model,
        job.metric,
        job.criterion,
        job.budget,
        tuple(j.seed for j, _ in runs),
        statistics.fmean(scores),
        _std(scores),
        change=_mean(changes),
        change_std=_std(changes),
        cut=_mean(after_cut),
        cut_dense=_mean([dense for j, _ in runs for dense in _dense_score(j, folders)]) if any(after_cut) else None,
        flops=flops,
        flops_kept=flops_kept,
        params=params,
        params_kept=params_kept,
        latency=latency,
        latency_dense=dense_latency,
        speedup=_ratio(dense_latency, latency),
    )


def _dense_score(job: Job, folders: RunFolders) -> list[float]:
    """The metric of the dense network of the same seed; [] if its result is missing."""
    result = folders.result(job.needed[-1]) if job.needed else None
    return [result["rows"]["dense"]["metrics"][job.metric]] if result else []


def _mean_cost(results: Sequence[Mapping[str, Any]], key: str) -> tuple[float | None, float | None]:
    """The mean "flops" or "params" of pruned networks, and the mean of pruned / dense."""
    pairs = [result[key] for result in results if key in result]
    return _mean([pruned for _, pruned in pairs]), _mean([_ratio(pruned, dense) for dense, pruned in pairs])


def table(found: Sequence[Row]) -> Table:
    """The rows as a table for a terminal."""
    columns = ("task", "criterion", "budget", "result", "change", "GFLOPs", "M params", "ms")
    body = tuple(
        (
            f"{row.task}, {row.model}: {row.metric.rpartition('/')[2]}",
            row.criterion,
            percent(row.budget),
            mean_and_std(row.mean, row.std),
            signed(row.change),
            giga(row.flops) if row.flops is not None else "-",
            mega(row.params) if row.params is not None else "-",
            milliseconds(row.latency),
        )
        for row in found
    )
    return Table(columns, body)


def to_csv(found: Sequence[Row]) -> str:
    """The rows as CSV in the units of `UNITS`, which the names of the columns tell; unknown values are empty fields."""
    file = io.StringIO()
    names = [UNITS[name][0] if name in UNITS else name for name in Row.__dataclass_fields__]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for row in found:
        values = asdict(row) | {"seeds": " ".join(map(str, row.seeds))}
        for name, (column, scale) in UNITS.items():
            value = values.pop(name)
            values[column] = None if value is None else value / scale
        writer.writerow(values)
    return file.getvalue()


def to_markdown(found: Sequence[Row]) -> str:
    """The rows as Markdown, one table per task and model."""
    parts = []
    for task, model in dict.fromkeys((row.task, row.model) for row in found):
        mine = [row for row in found if (row.task, row.model) == (task, model)]
        quality = "after the cut", mine[0].metric, "change"
        kept = "GFLOPs", "FLOPs kept", "M params", "params kept"
        columns = "criterion", "budget", *quality, *kept, "latency, ms", "dense, ms", "speed-up", "seeds"
        body = tuple(
            (
                row.criterion,
                percent(row.budget),
                number(row.cut),
                mean_and_std(row.mean, row.std),
                signed(row.change),
                "-" if row.flops is None else giga(row.flops),
                percent(row.flops_kept),
                "-" if row.params is None else mega(row.params),
                percent(row.params_kept),
                milliseconds(row.latency),
                milliseconds(row.latency_dense),
                times(row.speedup),
                str(len(row.seeds)),
            )
            for row in mine
        )
        parts.append(f"## {task}, {model}\n\n{Table(columns, body).markdown()}\n")
    return "\n".join(parts)


def to_data(study: Study, folders: RunFolders, found: Sequence[Row]) -> dict[str, Any]:
    """The rows, and the state and result of every run, as plain data for JSON."""
    runs = []
    for job in study.jobs:
        result, failure = folders.result(job), folders.failure(job)
        folder = str(folders.folder(job).relative_to(folders.root))
        run: dict[str, Any] = {"name": job.name, "state": folders.state(job), "folder": folder}
        if result is not None:
            run |= {key: result[key] for key in ("seconds", "rows", "flops", "params", "widths") if key in result}
        elif failure is not None:
            run["cause"] = failure["cause"]
        runs.append(run)
    return _finite({"study": study.name, "rows": [asdict(row) for row in found], "runs": runs})


def number(value: float | None, digits: int = 2) -> str:
    """Formats a number; "-" if it is None or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """Formats a share, "40.0%"; "-" if it is None."""
    return "-" if share is None else f"{share:.1%}"


def milliseconds(seconds: float | None) -> str:
    """Formats seconds in milliseconds, "27.4"; "-" if they are None."""
    return number(None if seconds is None else 1e3 * seconds, 1)


def times(ratio: float | None) -> str:
    """Formats a ratio, "1.76×"; "-" if it is None."""
    return "-" if ratio is None else f"{ratio:.2f}×"


def signed(value: float | None) -> str:
    """Formats a difference, "+1.20"; "-" if it is None."""
    return "-" if value is None else f"{value:+.2f}"


def mean_and_std(mean: float | None, std: float | None) -> str:
    """Formats a mean with its standard deviation, "39.30 ± 0.41"."""
    return number(mean) if std is None else f"{number(mean)} ± {number(std)}"


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if all are None."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _std(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    """The quotient; None if either is None or 0."""
    return numerator / denominator if numerator and denominator else None


def _finite(value: Any) -> Any:
    """Replaces NaN and infinite numbers by None in plain data, because JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
