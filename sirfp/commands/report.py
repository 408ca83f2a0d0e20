"""`sirfp report`: FLOPs, parameters, latency and widths of a dense model and of a pruned file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..reporting.progress import stage
from .arguments import (
    MODEL_USAGE,
    OPTS_USAGE,
    add_model,
    at_least,
    build_source,
    check_untouched,
    file_and_pairs,
    in_flags,
)
from .device import add_device, check_device, place
from .outcome import Outcome
from .recorded import restore_as_named

if TYPE_CHECKING:  # `sirfp --help` does not import PyTorch
    import torch
    from torch import nn

    from ..checkpoint.origin import Origin
    from ..network.latency import Latency
    from ..reporting.tables import Row
    from ..sources.source import Source
    from ..structure.plan import PruningPlan

USAGE = f"sirfp report [FILE] [{MODEL_USAGE[1:-1]}] [options] {OPTS_USAGE}"
EXAMPLE = """examples:
  sirfp report small.safetensors                              what the file records
  sirfp report small.safetensors --latency                    pruned compared with dense
  sirfp report --zoo COCO-Detection/retinanet_R_50_FPN_1x     which layers can be pruned, and which cannot"""


TIMING: dict[str, Any] = {"batch": 1, "repeats": 11, "warmup": 2, "runtimes": ["eager"]}
"""Defaults of the options of --latency."""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    add_model(parser)
    group = parser.add_argument_group("latency")
    group.add_argument("--latency", action="store_true", help="time calls of the dense and the pruned model in turns")
    group.add_argument(
        "--batch",
        type=at_least(1),
        default=TIMING["batch"],
        metavar="N",
        help="images in a timed call (default %(default)s)",
    )
    group.add_argument(
        "--repeats",
        type=at_least(1),
        default=TIMING["repeats"],
        metavar="N",
        help="timed calls of each model (default %(default)s)",
    )
    group.add_argument(
        "--warmup",
        type=at_least(0),
        default=TIMING["warmup"],
        metavar="N",
        help="calls before the timed ones (default %(default)s)",
    )
    group.add_argument("--threads", type=at_least(1), metavar="N", help="CPU threads; by default PyTorch's choice")
    group.add_argument(
        "--runtimes",
        nargs="+",
        choices=("eager", "channels-last", "bfloat16", "compiled", "onnxruntime", "openvino"),
        default=TIMING["runtimes"],
        metavar="NAME",
        help="any of %(choices)s (default eager); the last three time the graph that `sirfp export` writes",
    )
    add_device(group, "calls are timed")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="without FILE: modules that would not be pruned; repeatable",
    )
    parser.add_argument("--verbose", action="store_true", help="also list layers that cannot be pruned, and why")


def run(args: argparse.Namespace) -> Outcome:
    """Counts FLOPs and parameters, and measures latency with --latency."""
    from sirfp.checkpoint.origin import read_origin
    from sirfp.checkpoint.pruned import read

    file, opts = file_and_pairs(args, file=True)
    _check_options(args)
    if file and args.ignore:
        raise InputError(f"--ignore is for dense models, what {file} lost is cut: leave one of them out")
    pruned = read(file) if file else None  # first, so that a damaged file is reported before a model is built
    named = any(value is not None for value in (args.timm, args.config_file, args.zoo, args.size, args.num_classes))
    if pruned and not (named or opts or args.latency):  # the file says it all
        return _file(file, pruned[0], read_origin(file), args.verbose)
    source = build_source(args, opts, file)
    if source is None:
        if pruned is None:
            raise InputError("name a pruned FILE, a dense model (--timm, --config-file or --zoo), or both")
        wanting = {"--latency": args.latency, "--size": args.size, "--num-classes": args.num_classes is not None}
        flag = next((flag for flag, given in wanting.items() if given), "")
        if flag:
            raise InputError(f"{flag} needs the dense model: --timm NAME, --config-file PATH or --zoo CONFIG")
        return _file(file, pruned[0], None, args.verbose)
    place(source, args.device).check()
    return _dense(source, args) if pruned is None else _both(file, *pruned, source, args)


def _check_options(args: argparse.Namespace) -> None:
    """Raises InputError if there is no such device, a requested runtime does not run on it, or nothing is timed."""
    check_device(args.device)
    if not args.latency:
        check_untouched(args, "--latency", **TIMING, threads=None, device="cpu")
    on_cpu = [runtime for runtime in args.runtimes if runtime in ("onnxruntime", "openvino")]
    if args.device != "cpu" and on_cpu:
        raise InputError(f"--device {args.device}: {' and '.join(on_cpu)} run on the CPU here; leave --device out")


def _file(file: str, plan: PruningPlan, origin: Origin | None, verbose: bool) -> Outcome:
    """The report of a pruned file without its dense model."""
    from sirfp.reporting import tables

    found = tables.summary(plan)
    file_bytes = os.path.getsize(file)
    about: dict[str, Any] = {}
    line = f"{file}, {tables.size(file_bytes)}, pruned by {found.criterion or 'an unnamed criterion'}"
    if origin:
        size = f" on {origin.size[0]} x {origin.size[1]} pixels" if origin.size else ""
        line += f"; {origin.name}{size}"
        about = {"model": origin.name} | ({"size": list(origin.size)} if origin.size else {})
    output: list[Any] = [line]
    output += [*tables.budget_line(found), tables.comparison(found.rows()), tables.widths(found.widths)]
    if verbose and found.frozen:
        output.append(tables.frozen(found.frozen))
    return Outcome({"file": file, "file_bytes": file_bytes, **about, **found.to_dict()}, output)


def _both(
    file: str, plan: PruningPlan, state: Mapping[str, torch.Tensor], source: Source, args: argparse.Namespace
) -> Outcome:
    """The report of a pruned file in comparison with its dense model."""
    from sirfp.channels.find import find_groups
    from sirfp.reporting import tables

    stage("finding groups of channels")
    pruned = source.fresh()
    restore_as_named(pruned, plan, state, file, args)
    rows = []
    models = {"dense": source.model, "pruned": pruned}
    for name, model in models.items():
        found = find_groups(model, source.example(), trial=False)
        rows.append(tables.Row(name, found.flops(), found.params()))
    latencies, timed = _timed(rows, models, source, args) if args.latency else ([], {})
    summary = tables.summary(plan)
    file_bytes = os.path.getsize(file)
    height, width = source.size
    output: list[Any] = [f"{file}, {tables.size(file_bytes)}; {source.name} on {height} x {width} pixels"]
    output += [*tables.budget_line(summary), tables.comparison(rows), *latencies, tables.widths(summary.widths)]
    if args.verbose and summary.frozen:
        output.append(tables.frozen(summary.frozen))
    data = {
        "file": file,
        "file_bytes": file_bytes,
        **_about(source, args, timed),
        "networks": [row.to_dict() for row in rows],
    }
    planned = summary.to_dict()
    return Outcome({**data, **{key: planned[key] for key in ("criterion", "budget", "groups", "frozen")}}, output)


def _dense(source: Source, args: argparse.Namespace) -> Outcome:
    """The report of a dense model: its costs, and the groups that can be pruned."""
    from sirfp.channels.find import find_groups
    from sirfp.reporting import tables

    stage("finding groups of channels")
    with in_flags(IGNORE="--ignore"):
        found = find_groups(source.model, source.example(), args.ignore)
    rows = [tables.Row("dense", found.flops(), found.params())]
    latencies, timed = _timed(rows, {"dense": source.model}, source, args) if args.latency else ([], {})
    height, width = source.size
    groups = [{"name": g.name, "channels": g.size, "inexact": g.inexact} for g in found]
    frozen = [{"name": f.name, "channels": f.channels, "reason": f.reason} for f in found.frozen]
    table = tables.Table(("group", "channels"), tuple((g.name, str(g.size)) for g in found))
    why = tables.Table(("frozen", "channels", "why"), tuple((f.name, str(f.channels), f.reason) for f in found.frozen))
    channels = sum(g.size for g in found)
    output: list[Any] = [f"{source.name} on {height} x {width} pixels", tables.comparison(rows), *latencies]
    output += [f"{channels} channels in {len(found)} groups can be pruned.", table]
    if frozen:
        output += [f"{len(frozen)} layers cannot be pruned:", why]
    return Outcome(
        {**_about(source, args, timed), "networks": [r.to_dict() for r in rows], "groups": groups, "frozen": frozen},
        output,
    )


def _timed(
    rows: list[Row], models: Mapping[str, nn.Module], source: Source, args: argparse.Namespace
) -> tuple[list[Any], dict[str, Any]]:
    """Measures latency in the requested runtimes.

    Args:
        rows: a row per model; the latency in the first runtime is added in place.
        models: {name: model}.
        source: source of the dense model.
        args: the command line.

    Returns:
        Texts and tables to print, and data for JSON: latencies by runtime and network, and runtimes that failed.
    """
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    import torch

    from sirfp.exporting import build_graph
    from sirfp.exporting.runtimes import GRAPH_RUNTIMES, compare

    inputs = source.example(args.batch)
    calls: dict[str, dict] = {}
    not_timed: dict[str, str] = {}
    for runtime in dict.fromkeys(args.runtimes):
        if runtime not in GRAPH_RUNTIMES:
            calls[runtime] = {name: (model, inputs) for name, model in models.items()}
            continue
        images = torch.stack(source.raw(inputs))
        try:
            calls[runtime] = {name: (build_graph(source, model), images) for name, model in models.items()}
        except InputError as error:
            not_timed[runtime] = str(error)
    stage(f"preparing and timing {', '.join(calls)}")
    with tempfile.TemporaryDirectory() as folder:
        found, failed = compare(calls, Path(folder), warmup=args.warmup, repeats=args.repeats, threads=args.threads)
    not_timed |= failed
    if not found:
        raise InputError("; ".join(not_timed.values()))
    first = next(iter(found.values()))
    rows[:] = [replace(row, latency=first[row.name].median, quartiles=_quartiles(first[row.name])) for row in rows]
    networks = {
        runtime: {n: {"latency_seconds": t.median, "latency_quartiles": _quartiles(t)} for n, t in times.items()}
        for runtime, times in found.items()
    }
    output = [*_latency_output(args, found), *(f"{r} was not timed: {reason}" for r, reason in not_timed.items())]
    return output, {"runtimes": networks, "not_timed": not_timed}


def _quartiles(latency: Latency) -> tuple[float, float]:
    return latency.low, latency.high


def _about(source: Source, args: argparse.Namespace, timed: dict[str, Any]) -> dict[str, Any]:
    """Data for JSON about the model and the measurement."""
    about: dict[str, Any] = {"model": source.name, "size": list(source.size)}
    if args.latency:
        how = ("batch", "repeats", "warmup", "threads", "device")
        about["latency"] = {key: getattr(args, key) for key in how} | timed
    return about


def _latency_output(args: argparse.Namespace, found: Mapping[str, Mapping[str, Latency]]) -> list[Any]:
    """A sentence on the measurement of latency, and a table if there are several runtimes."""
    from sirfp.reporting import tables

    threads = f", {args.threads} thread{'s' * (args.threads > 1)}" if args.threads else ""
    device = "" if args.device == "cpu" else f", on {args.device}"
    images = "1 image" if args.batch == 1 else f"{args.batch} images"
    first = next(iter(found))
    method = f"Latency in {first}" if len(found) > 1 or first != "eager" else "Latency"
    method += f": median and quartiles of {args.repeats} calls in turns, {images} each{threads}{device}."
    return [method, tables.runtimes(found)] if len(found) > 1 else [method]
