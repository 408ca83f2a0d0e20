"""Reads the figures of each benchmark's result, compares them with their bounds, and writes the page of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import profile_tables as profiles

from sirfp.reporting.tables import Table

HEAD = """# Benchmarks

    python benchmarks/run.py                          # all except budgets-all, resumable; make bench
    python benchmarks/run.py --only latency-resnet50  # one of them
    python benchmarks/run.py --only budgets-all       # every network of the prunability tables
    python benchmarks/run.py --table                  # this page, from the stored results

This page has every figure that needs no data set, with its bound. Figures are medians of repeats. The two sides of a
ratio are measured in turns within one run. The networks have random weights. If other work keeps cores busy, seconds
are longer than on an idle machine, and ratios are less certain. [From FLOPs to time](latency.md) explains why latency
is above the share of FLOPs, and [bounds.md](bounds.md) why some bounds are not met.

Machine: {machine}.
"""


@dataclass(frozen=True)
class Figure:
    """A figure, with its bound if it has one.

    Attributes:
        what: what was measured.
        value: the value as text, with its unit.
        bound: the bound as text; "" for none.
        met: whether the bound is met; None if there is no bound or it was not decided.
    """

    what: str
    value: str
    bound: str = ""
    met: bool | None = None

    def line(self) -> str:
        """The figure as a line for terminals."""
        return f"{self.what}: {self.value}" + (f" (bound {self.bound}: {self.verdict})" if self.bound else "")

    @property
    def verdict(self) -> str:
        """Whether the bound is met, as text."""
        return {True: "met", False: "NOT MET", None: "not decided" if self.bound else ""}[self.met]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def figures(name: str, result: Mapping[str, Any]) -> list[Figure]:
    """The figures of a benchmark's result."""
    if "failed" in result:
        return [Figure(name, result["failed"], "runs", False)]
    read = next(read for prefix, read in READERS.items() if name.startswith(prefix))
    try:
        return read(result)
    except KeyError as lack:
        return [Figure(name, f"a result of another version, without {lack}: measure it --again", "runs", False)]


def page(kept: Mapping[str, Mapping[str, Any]], found: Mapping[str, list[Figure]]) -> str:
    """The page of all results as Markdown."""
    machines = [entry["result"]["machine"] for entry in kept.values() if "machine" in entry["result"]]
    facts = {key: value for machine in machines for key, value in machine.items() if key != "device"}
    parts = [HEAD.format(machine=", ".join(f"{key} {value}" for key, value in facts.items()))]
    rows = [(f.what, f.value, f.bound, f.verdict) for figures_ in found.values() for f in figures_ if f.bound]
    parts.append(_markdown(("what", "figure", "bound", ""), rows))
    for name, entry in kept.items():
        more = [(f.what, f.value) for f in found[name] if not f.bound]
        cores = entry.get("busy_cores")
        took = f"Took {entry['seconds']:.0f} s" + (
            f"; just before, other work kept {cores:.1f} cores busy." if cores is not None else "."
        )
        parts.append(f"## {name}\n\n    {entry['command']}\n\n{took}\n")
        if more:
            parts.append(_markdown(("what", "figure"), more))
        if name in TABLES and not any(f.met is False and f.bound == "runs" for f in found[name]):
            parts += [f"{text}\n" for text in TABLES[name](entry["result"])]
    return "\n".join(parts)


def _markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return Table(columns, tuple(rows)).markdown() + "\n"


def scoring(result: Mapping[str, Any]) -> list[Figure]:
    greedy, ratio, wide = result["greedy_s"], result["ratio"], result["greedy_4096_s"]
    return [
        Figure(
            f"scoring all {result['layers']} layers of DeepLabV3-ResNet-50", f"{greedy:.3f} s", "0.2 s", greedy < 0.2
        ),
        Figure("the same against the naive baseline", f"{ratio:.0f} times as fast", "100 times", ratio >= 100),
        Figure("scoring 4096 channels", f"{wide:.3f} s", "1 s", wide < 1),
    ]


def accumulation(result: Mapping[str, Any]) -> list[Figure]:
    share = result["share"]
    subject = f"{result['model']}, {result['precision']}"
    return [
        Figure(f"statistics in a training step, {subject}", f"{share['median']:+.1%}", "3%", share["median"] <= 0.03),
        Figure("from the lowest to the highest update", f"{share['lowest']:+.1%} to {share['highest']:+.1%}"),
        Figure("a step without statistics", f"{result['step_s']:.3f} s"),
        Figure("held by accumulators", f"{result['accumulators_mib']:.0f} MiB"),
    ]


def kernel(result: Mapping[str, Any]) -> list[Figure]:
    seconds = _updates(result)
    stride = min(stride for stride, *_ in seconds)
    wide = max(channels for _, channels, _ in seconds)
    sizes = sorted({size for at, channels, size in seconds if (at, channels) == (stride, wide)})
    rows = [
        Figure(f"one update, {wide} channels, {_by(size)}, stride {at}", f"{seconds[at, wide, size] * 1e3:.1f} ms")
        for at in sorted({at for at, *_ in seconds})
        for size in sizes[-1:]
    ]
    ways = [((wide // 2, sizes[-1]), (wide, sizes[-1])), *(((wide, s), (wide, sizes[-1])) for s in sizes[-2:-1])]
    for before, after in ways:
        if (stride, *before) in seconds:
            ratio = seconds[(stride, *after)] / seconds[(stride, *before)]
            what = f"from {before[0]} channels on {_by(before[1])} to {after[0]} on {_by(after[1])}, stride {stride}"
            rows.append(Figure(what, f"{ratio:.1f} times the time"))
    extra = max(row["extra_bytes"] for row in result["rows"])
    rows.append(Figure("most memory in addition to features and accumulators", f"{extra / 2**20:.0f} MiB"))
    return [*rows, *(Figure("skipped as too large", f"{r['channels']}, {_by(r['size'])}") for r in result["skipped"])]


def kernel_tables(result: Mapping[str, Any]) -> list[str]:
    """Milliseconds of an update by channels and size of the map, in one table for each stride."""
    seconds, texts = _updates(result), []
    sizes = sorted({size for *_, size in seconds})
    for stride in sorted({at for at, *_ in seconds}):
        rows = [
            (str(c), *(f"{seconds[stride, c, s] * 1e3:.1f}" if (stride, c, s) in seconds else "" for s in sizes))
            for c in sorted({channels for _, channels, _ in seconds})
        ]
        images = result["rows"][0]["images"]
        texts.append(f"Milliseconds of an update on {images} images, at every position of stride {stride}:")
        texts.append(Table(("channels", *map(_by, sizes)), tuple(rows)).markdown())
    return texts


def _updates(result: Mapping[str, Any]) -> dict[tuple[int, int, tuple[int, int]], float]:
    """{(stride, channels, size): seconds}."""
    return {(row["stride"], row["channels"], tuple(row["size"])): row["seconds"] for row in result["rows"]}


def _by(size: Any) -> str:
    return f"{size[0]} x {size[1]}"


def loop(result: Mapping[str, Any]) -> list[Figure]:
    return [
        Figure(f"sirfp's training loop over a plain one, {name}", f"{added:+.1%}", "3%", added <= 0.03)
        for name, added in ((name, values["median"]) for name, values in result["added"].items())
    ]


def planning(result: Mapping[str, Any]) -> list[Figure]:
    seconds, bound = result["seconds"], result["bound_s"]
    worst = max(seconds["together"], seconds["together_first"])
    asked, kept = result["keep_flops"]["asked"], result["keep_flops"]["kept"]
    off, same = (kept - asked) / asked, result["flops"]["ours"] == result["flops"]["fvcore"]
    subject = result["model"]
    return [
        Figure(f"groups, plan and surgery, {subject}", f"{worst:.2f} s", f"{bound} s", worst < bound),
        Figure(f"distance from the budget of FLOPs, {subject}", f"{off:+.3%}", "0.5%", -0.005 <= off <= 0),
        Figure(f"FLOPs as fvcore counts, {subject}", "equal" if same else "unequal", "equal", same),
        *(Figure(part, f"{seconds[part]:.2f} s") for part in ("groups", "plan", "cut", "together_first")),
    ]


def memory(result: Mapping[str, Any]) -> list[Figure]:
    ratio = f"{result['ratio']:.2f} times the network"
    return [
        Figure(f"peak memory of planning and surgery, {result['model']}", ratio, "2 times", result["within_bounds"]),
        Figure("the network", f"{result['model_mib']:.0f} MiB"),
        Figure("planning and surgery, in addition", f"{result['planning_mib']:.0f} MiB"),
        Figure("a forward pass, in addition", f"{result['forward_mib']:.0f} MiB"),
    ]


def peers(result: Mapping[str, Any]) -> list[Figure]:
    rows = []
    for row in result["rows"]:
        what, ours = f"groups, plan and surgery against torch-pruning, {row['model']}", f"{row['ours_s']:.2f} s"
        untried = f"{row['untried_s']:.2f} s"
        rows.append(Figure(f"without trying the cuts on copies, {row['model']}", untried))
        if "ratio" in row:
            value = f"{ours} against {row['theirs_s']:.2f} s, ratio {row['ratio']:.2f}"
            rows.append(Figure(what, value, "ratio 1", row["ratio"] <= 1))
        else:
            rows.append(Figure(what, f"{ours}; torch-pruning {row.get('error', 'is not installed')}"))
    return rows


def budgets(result: Mapping[str, Any]) -> list[Figure]:
    rows = []
    for key, found in result.items():
        if key.startswith("round_to"):
            width = "any width" if key.endswith("_1") else f"widths in multiples of {key.rpartition('_')[2]}"
            value = (
                f"{found['within_half_a_percent']} of {result['networks']} networks, worst {found['worst']:.2%} below"
            )
            rows.append(Figure(f"budgets of FLOPs and parameters met, {width}", value, "0.5%", not found["beyond"]))
    return rows


def latency(result: Mapping[str, Any]) -> list[Figure]:
    rows = [
        Figure(f"latency of dense at {result['keep_flops']:.0%} of FLOPs, {what}", f"{share:.2f}", "0.5", share <= 0.5)
        for what, share in result["best"].items()
    ]
    lacking = result["not_timed"].items()
    rows += [Figure(f"latency in {name}", f"not timed: {why}", "runs", False) for name, why in lacking]
    exact = result["flops_exact"]
    rows.append(Figure("these budgets of FLOPs", "met" if exact else "not met", "0.5%", exact))
    for row in result["rows"]:
        shares = ", ".join(f"{name} {value:.2f}" for name, value in row["share"].items())
        value = f"dense {row['dense_s'] * 1e3:.1f} ms, quartiles {row['spread']:.0%} apart; {shares}"
        rows.append(Figure(f"{row['model']}, batch {row['batch']}, {row['runtime']}", value))
    return rows


def profile(result: Mapping[str, Any]) -> list[Figure]:
    rows = []
    for row in result["rows"]:
        worst = ", ".join(f"{part['part']} {100 * part['over']:+.1f}" for part in row["parts"][:3])
        about = f"{row['model']}, batch {row['batch']}, {row['runtime']}, {row['network']}"
        share = row["pruned_s"] / row["dense_s"]
        value = f"{share:.2f} of dense; over their share, in per cent of the dense latency: {worst}"
        rows.append(Figure(f"profile, {about}", value))
    return rows


def profile_tables(result: Mapping[str, Any]) -> list[str]:
    """The parts of each pruned network, see `latency_profile.py`."""
    return [
        text
        for row in result["rows"]
        for text in (profiles.title(row), profiles.table(row).markdown(), profiles.calls(row))
    ]


def loss_curves(result: Mapping[str, Any]) -> list[Figure]:
    rows = []
    for row in result["rows"]:
        name, bound = row["model"], row.get("bound_s")
        if bound is not None:
            what = f"loss curves on {row['images']} images, {name}, {row['points']} points of {row['groups']} groups"
            rows.append(Figure(what, f"{row['curves_s']:.0f} s", f"{bound:g} s", row["curves_s"] <= bound))
        at_most = result["order_bound_s"] if name == "deeplab" else None
        shown = (f"{at_most:g} s", row["order_s"] <= at_most) if at_most is not None else ()
        rows.append(Figure(f"set-wise order of {row['groups']} groups, {name}", f"{row['order_s']:.1f} s", *shown))
        rows.append(Figure(f"moments of layers' inputs, {name}", f"{row['moments_s']:.0f} s"))
        rows.append(Figure(f"moments of gradients, {name}", f"{row['gradients_s']:.0f} s"))
    return rows


def startup(result: Mapping[str, Any]) -> list[Figure]:
    spent, shares, runs = result["import_s"], result["imports_of_a_run_s"], result["runs"]
    rows = [Figure("import sirfp once torch is imported", f"{spent:.3f} s", "0.3 s", spent < 0.3)]
    for name, run in runs.items():
        what, bound = f"start of a run, sirfp's part, {name}", {"scenes": 2.0}.get(name)
        value = f"{run['ours_s']:.2f} s"
        rows.append(Figure(what, value, *((f"{bound:g} s", run["ours_s"] < bound) if bound else ())))
        rows.append(Figure(f"from train_net.py to the first iteration, {name}", f"{run['all_s']:.2f} s"))
        rows += [Figure(f"{name}: {phase}", f"{s:.2f} s") for phase, s in run["phases_s"].items() if s >= 0.01]
    imports = f"{shares['ours']:.2f} s sirfp and project, {shares['others']:.2f} s other modules"
    return [*rows, Figure("imports of a run", imports)]


READERS: dict[str, Callable[[Mapping[str, Any]], list[Figure]]] = {
    "scoring": scoring,
    "accumulation-kernel": kernel,
    "accumulation": accumulation,
    "loop": loop,
    "loss-curves": loss_curves,
    "planning-memory": memory,
    "planning-peers": peers,
    "planning": planning,
    "budgets": budgets,
    "latency-profile": profile,
    "latency": latency,
    "startup": startup,
}
"""The function that reads a benchmark's result, by the beginning of the benchmark's name; the first match counts."""

TABLES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "accumulation-kernel": kernel_tables,
    "latency-profile": profile_tables,
}
"""Functions for further tables in a benchmark's section."""
