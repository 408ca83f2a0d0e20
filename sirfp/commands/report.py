"""`sirfp report`: FLOPs, parameters, latency and widths, of a dense model and of its pruned file."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..errors import InputError
from .arguments import MODEL_USAGE, OPTS_USAGE, add_model, at_least, build_source, in_flags, split_words
from .outcome import Outcome

USAGE = f"sirfp report [FILE] [{MODEL_USAGE[1:-1]}] [options] {OPTS_USAGE}"
EXAMPLE = """examples:
  sirfp report small.safetensors                              what the file says of itself
  sirfp report small.safetensors --timm resnet18 --latency    pruned beside dense
  sirfp report --zoo COCO-Detection/retinanet_R_50_FPN_1x     what can be pruned in a model, and what cannot"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    add_model(parser)
    group = parser.add_argument_group("latency")
    group.add_argument("--latency", action="store_true", help="time dense and pruned calls in turns")
    group.add_argument(
        "--batch",
        type=at_least(1),
        default=1,
        metavar="N",
        help="images in a timed call (default %(default)s)",
    )
    group.add_argument(
        "--repeats",
        type=at_least(1),
        default=11,
        metavar="N",
        help="timed calls of each (default %(default)s)",
    )
    group.add_argument(
        "--warmup", type=at_least(0), default=2, metavar="N", help="calls before them (default %(default)s)"
    )
    group.add_argument(
        "--threads", type=at_least(1), metavar="N", help="processor threads; by default PyTorch's choice"
    )
    group.add_argument(
        "--runtimes",
        nargs="+",
        choices=("eager", "channels-last", "bfloat16", "compiled", "onnxruntime"),
        default=["eager"],
        metavar="NAME",
        help="any of %(choices)s (default eager); the last two time the graph that `sirfp export` writes",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="without FILE: modules that would stay whole; repeatable",
    )
    parser.add_argument("--verbose", action="store_true", help="also list what cannot be cut, and why")


def run(args: argparse.Namespace) -> Outcome:
    """Counts, and times if asked to."""
    from sirfp.checkpoint.pruned import read

    file, opts = split_words(args.words, file=True)
    read_file = read(file) if file else None  # before a model is built for it
    source = build_source(args, opts)
    if source is None:
        if not file:
            raise InputError("name a pruned FILE, a dense model (--timm, --config-file or --zoo), or both")
        if args.latency:
            raise InputError("--latency needs the dense model: --timm NAME, --config-file PATH or --zoo CONFIG")
        return _file(file, read_file[0], args.verbose)
    source.check()
    return _both(file, *read_file, source, args) if file else _dense(source, args)


def _file(file: str, plan, verbose: bool) -> Outcome:
    from sirfp.reporting import tables

    found = tables.summary(plan)
    bytes_ = os.path.getsize(file)
    shown: list[Any] = [f"{file}, {tables.size(bytes_)}, pruned by {found.criterion or 'an unnamed criterion'}"]
    shown += [*tables.budget_lines(found), tables.comparison(found.rows()), tables.widths(found.widths)]
    if verbose and found.frozen:
        shown.append(tables.frozen(found.frozen))
    return Outcome({"file": file, "file_bytes": bytes_, **found.to_dict()}, shown)


def _both(file: str, plan, state, source, args: argparse.Namespace) -> Outcome:
    from sirfp.channels.find import find_groups
    from sirfp.checkpoint.pruned import restore
    from sirfp.reporting import tables

    pruned = source.fresh()
    restore(pruned, plan, state, file)
    rows = []
    models = {"dense": source.model, "pruned": pruned}
    for name, model in models.items():
        found = find_groups(model, source.example(), trial=False)
        rows.append(tables.Row(name, found.flops(), found.params()))
    latencies, timed = _timed(rows, models, source, args) if args.latency else ([], {})
    said = tables.summary(plan)
    bytes_ = os.path.getsize(file)
    height, width = source.size
    shown: list[Any] = [f"{file}, {tables.size(bytes_)}; {source.name} on {height} x {width} pixels"]
    shown += [*tables.budget_lines(said), tables.comparison(rows), *latencies, tables.widths(said.widths)]
    if args.verbose and said.frozen:
        shown.append(tables.frozen(said.frozen))
    data = {
        "file": file,
        "file_bytes": bytes_,
        **_about(source, args, timed),
        "networks": [row.to_dict() for row in rows],
    }
    words = said.to_dict()
    return Outcome({**data, **{key: words[key] for key in ("criterion", "budget", "groups", "frozen")}}, shown)


def _dense(source, args: argparse.Namespace) -> Outcome:
    from sirfp.channels.find import find_groups
    from sirfp.reporting import tables

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
    shown: list[Any] = [f"{source.name} on {height} x {width} pixels", tables.comparison(rows), *latencies]
    shown += [f"{channels} channels in {len(found)} groups can be pruned.", table]
    if frozen:
        shown += [f"What cannot be cut, and why ({len(frozen)}):", why]
    return Outcome(
        {**_about(source, args, timed), "networks": [r.to_dict() for r in rows], "groups": groups, "frozen": frozen},
        shown,
    )


def _timed(rows: list, models: dict, source, args: argparse.Namespace) -> tuple[list, dict[str, Any]]:
    """Puts the first runtime's latencies into rows; returns what to show of all, and {runtime: {network: ...}}."""
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    import torch

    from sirfp.exporting import build_graph
    from sirfp.exporting.runtimes import GRAPH_RUNTIMES, compare

    inputs = source.example(args.batch)
    calls: dict[str, dict] = {}
    lacking: dict[str, str] = {}
    for runtime in dict.fromkeys(args.runtimes):
        if runtime not in GRAPH_RUNTIMES:
            calls[runtime] = {name: (model, inputs) for name, model in models.items()}
            continue
        images = torch.stack(source.raw(inputs))
        try:
            calls[runtime] = {name: (build_graph(source, model), images) for name, model in models.items()}
        except InputError as error:
            lacking[runtime] = str(error)
    with tempfile.TemporaryDirectory() as folder:
        options = {"warmup": args.warmup, "repeats": args.repeats, "threads": args.threads}
        found, failed = compare(calls, Path(folder), **options)
    lacking |= failed
    if not found:
        raise InputError("; ".join(lacking.values()))
    first = next(iter(found.values()))
    rows[:] = [replace(row, latency=first[row.name].median, quartiles=_quartiles(first[row.name])) for row in rows]
    networks = {
        runtime: {n: {"latency_seconds": t.median, "latency_quartiles": _quartiles(t)} for n, t in times.items()}
        for runtime, times in found.items()
    }
    return [*_how(args, found), *(f"{r} was not timed: {why}" for r, why in lacking.items())], {
        "runtimes": networks,
        "not_timed": lacking,
    }


def _quartiles(latency) -> tuple[float, float]:
    return latency.low, latency.high


def _about(source, args: argparse.Namespace, timed: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {"model": source.name, "size": list(source.size)}
    if args.latency:
        about["latency"] = {key: getattr(args, key) for key in ("batch", "repeats", "warmup", "threads")} | timed
    return about


def _how(args: argparse.Namespace, found: dict) -> list:
    from sirfp.reporting import tables

    threads = f", {args.threads} thread{'s' * (args.threads > 1)}" if args.threads else ""
    images = "1 image" if args.batch == 1 else f"{args.batch} images"
    first = next(iter(found))
    said = f"Latency in {first}" if len(found) > 1 or first != "eager" else "Latency"
    said += f": median and quartiles of {args.repeats} calls in turns, {images} each{threads}."
    return [said, tables.runtimes(found)] if len(found) > 1 else [said]
