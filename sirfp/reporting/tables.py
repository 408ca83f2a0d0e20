"""Results of pruning as numbers, and as tables for terminals and Markdown.

FLOPs are multiply-adds; tables show GFLOPs (1e9 multiply-adds), millions of parameters and milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..structure.plan import MEASURED, QUANTITIES, PruningPlan


@dataclass(frozen=True)
class Row:
    """One network in a comparison.

    Attributes:
        name: "dense", "pruned", "fine-tuned", ...
        flops: number of multiply-adds of one call.
        params: number of parameters.
        metrics: {metric: value}, e.g. {"sem_seg/mIoU": 71.2}.
        latency: median seconds of one call.
        quartiles: lower and upper quartile of the seconds of one call.
    """

    name: str
    flops: int
    params: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    latency: float | None = None
    quartiles: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, without values that were not measured."""
        data: dict[str, Any] = {"name": self.name, "flops": self.flops, "params": self.params}
        if self.metrics:
            data["metrics"] = dict(self.metrics)
        if self.latency is not None:
            data["latency_seconds"] = self.latency
        if self.quartiles:
            data["latency_quartiles"] = list(self.quartiles)
        return data


@dataclass(frozen=True)
class Width:
    """Number of kept channels of a group, and its number of channels before pruning (`channels`)."""

    group: str
    kept: int
    channels: int


@dataclass(frozen=True)
class Summary:
    """The numbers of a plan.

    Attributes:
        criterion: name of the criterion.
        flops: numbers of multiply-adds of the dense and the pruned network.
        params: numbers of parameters of the dense and the pruned network.
        widths: kept and dense channels of each group, in the order of the model.
        frozen: {name: reason} of layers that cannot be pruned.
        budget: requested (quantity, share to keep); None if the plan does not record the budget.
        latency: seconds per call of the dense and the pruned network, measured during pruning; None unless the budget
            limited latency.
    """

    criterion: str
    flops: tuple[int, int]
    params: tuple[int, int]
    widths: tuple[Width, ...]
    frozen: Mapping[str, str]
    budget: tuple[str, float] | None = None
    latency: tuple[float, float] | None = None

    @property
    def kept_flops(self) -> float:
        """The share of FLOPs kept."""
        return share(self.flops[1], self.flops[0])

    @property
    def kept_params(self) -> float:
        """The share of parameters kept."""
        return share(self.params[1], self.params[0])

    def rows(self) -> list[Row]:
        """Rows of the dense and of the pruned network."""
        return [Row(n, f, p) for n, f, p in zip(("dense", "pruned"), self.flops, self.params, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "criterion": self.criterion,
            "budget": self._budget(),
            "flops": {"dense": self.flops[0], "pruned": self.flops[1], "kept": self.kept_flops},
            "params": {"dense": self.params[0], "pruned": self.params[1], "kept": self.kept_params},
            "groups": [{"name": w.group, "kept": w.kept, "channels": w.channels} for w in self.widths],
            "frozen": dict(self.frozen),
        }

    def _budget(self) -> dict[str, Any] | None:
        if self.budget is None:
            return None
        quantity, requested = self.budget
        return {"quantity": quantity, "asked": requested, "kept": self.kept(quantity)}

    def kept(self, quantity: str) -> float | None:
        """The kept share of a quantity (a key of `QUANTITIES`); None for a latency that was not measured."""
        pair = getattr(self, quantity)
        return None if pair is None else share(pair[1], pair[0])


@dataclass(frozen=True)
class Table:
    """A table of text cells: names in the first column, numbers in the others."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def markdown(self) -> str:
        """The table in Markdown, with aligned columns."""
        lines = [self.columns, *self.rows]
        width = [max(3, *(len(line[i]) for line in lines)) for i in range(len(self.columns))]
        rule = ["-" * width[0], *("-" * (n - 1) + ":" for n in width[1:])]
        first, *rest = [
            [_pad(cell, n, i) for i, (cell, n) in enumerate(zip(line, width, strict=True))] for line in lines
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in (first, rule, *rest))

    def rich(self, *, numbers: bool = True):
        """The table for `rich.console.Console.print`.

        Args:
            numbers: True to align all columns but the first to the right; False if all hold text.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=SIMPLE_HEAD, title=self.title or None, title_justify="left", title_style="bold")
        for i, column in enumerate(self.columns):
            right = numbers and i > 0
            table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table


def summary(plan: PruningPlan) -> Summary:
    """Extracts the numbers of a plan."""
    widths = tuple(Width(name, len(kept), plan.channels[name]) for name, kept in plan.kept.items())
    return Summary(plan.criterion, plan.flops, plan.params, widths, plan.frozen, plan.budget, plan.latency)


def budget_line(found: Summary) -> list[str]:
    """A line with the requested budget and the kept share; [] if the plan does not record the budget."""
    if found.budget is None:
        return []
    quantity, requested = found.budget
    kept = found.kept(quantity)
    measured = ", measured when it was pruned" if quantity in MEASURED else ""
    result = "The share kept is not known." if kept is None else f"Kept: {100 * kept:.2f}%{measured}."
    return [f"Budget: {100 * requested:g}% of the {QUANTITIES[quantity]}. {result}"]


def comparison(rows: Iterable[Row], metrics: Sequence[str] = ()) -> Table:
    """A table that compares networks.

    Args:
        rows: the networks; kept shares are relative to the first network.
        metrics: metrics to show, in this order; all by default.
    """
    rows = list(rows)
    names = list(metrics) or list(dict.fromkeys(key for row in rows for key in row.metrics))
    timed = any(row.latency is not None for row in rows)
    columns = ["network", *_headers(names), "GFLOPs", "kept", "M params", "kept"]
    body = []
    for row in rows:
        cells = [row.name, *(_number(row.metrics.get(key)) for key in names)]
        cells += [giga(row.flops), percent(row.flops, rows[0].flops)]
        cells += [mega(row.params), percent(row.params, rows[0].params)]
        body.append((*cells, *([_latency(row)] if timed else [])))
    return Table((*columns, *(["latency, ms"] if timed else [])), tuple(body))


def stages(rows: Mapping[str, Mapping[str, Any]], metrics: Sequence[str] = ()) -> str:
    """The Markdown table of a training run.

    Args:
        rows: {"dense" | "pruned" | "fine-tuned": {"metrics": {...}, "flops": ..., "params": ..., "latency": ...}};
            the latency is in seconds and optional.
        metrics: metrics to show; all by default.
    """
    networks = [
        Row(name, row["flops"], row["params"], row.get("metrics", {}), row.get("latency")) for name, row in rows.items()
    ]
    return comparison(networks, metrics).markdown()


def runtimes(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table of latencies {runtime: {network: `latency.Latency`}}, with ratios to the first (dense) network."""
    names = list(next(iter(found.values())))
    body = []
    for runtime, times in found.items():
        cells = [f"{t.median * 1e3:.1f} ({t.low * 1e3:.1f} to {t.high * 1e3:.1f})" for t in times.values()]
        shares = [f"{times[name].median / times[names[0]].median:.2f}" for name in names[1:]]
        body.append((runtime, *cells, *shares))
    shares = [f"{name} / {names[0]}" for name in names[1:]]
    return Table(("runtime", *(f"{name}, ms" for name in names), *shares), tuple(body))


def metrics(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table of all metrics of a training run: one row per metric, one column per network of `stages`."""
    names = dict.fromkeys(key for row in rows.values() for key in row.get("metrics", {}))
    body = tuple((name, *(_number(row.get("metrics", {}).get(name)) for row in rows.values())) for name in names)
    return Table(("metric", *rows), body)


def widths(entries: Iterable[Width]) -> Table:
    """A table of the channels that each group keeps."""
    body = tuple((w.group, str(w.kept), str(w.channels), percent(w.kept, w.channels)) for w in entries)
    return Table(("group", "kept", "of", "share"), body)


def frozen(entries: Mapping[str, str] | Iterable[tuple[str, str]]) -> Table:
    """A table of layers that cannot be pruned, with the reasons."""
    items = entries.items() if isinstance(entries, Mapping) else entries
    return Table(("frozen", "why"), tuple(items))


def share(part: float, whole: float) -> float:
    """part / whole; 1 if `whole` is 0."""
    return part / whole if whole else 1.0


def percent(part: float, whole: float) -> str:
    """Formats a share, "40.0%"."""
    return f"{100 * share(part, whole):.1f}%"


def giga(flops: float) -> str:
    """Formats multiply-adds in GFLOPs, "4.13": two decimals, or three significant digits below 1."""
    return _scaled(flops / 1e9)


def mega(params: float) -> str:
    """Formats a number of parameters in millions, "25.56"."""
    return _scaled(params / 1e6)


def size(count: int) -> str:
    """Formats a number of bytes, "44.7 MB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def _scaled(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _latency(row: Row) -> str:
    if row.latency is None:
        return "-"
    quartiles = f" ({row.quartiles[0] * 1e3:.1f} to {row.quartiles[1] * 1e3:.1f})" if row.quartiles else ""
    return f"{row.latency * 1e3:.1f}{quartiles}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _headers(names: Sequence[str]) -> list[str]:
    """The last parts of metrics' names; full names if two last parts are equal."""
    tails = [name.rpartition("/")[2] for name in names]
    return [t if tails.count(t) == 1 else n for n, t in zip(names, tails, strict=True)]


def _pad(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)
