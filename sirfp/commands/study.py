"""`sirfp study`: runs a grid of tasks, models, criteria, budgets and seeds, and writes its report."""

from __future__ import annotations

import argparse
import fnmatch
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError
from .arguments import at_least
from .outcome import Outcome

USAGE = "sirfp study STUDY.yaml [options]"
EXAMPLE = """examples:
  sirfp study studies/scenes.yaml --list            the grid, and what is done of it
  sirfp study studies/scenes.yaml                   runs what is not done; stop it and start it again at will
  sirfp study studies/scenes.yaml --only '*/sirfp/*'
  sirfp study studies/scenes.yaml --cluster slurm --jobs 20 --cluster-option slurm_partition=gpu gpus_per_node=1"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describes the arguments."""
    parser.add_argument("study", metavar="STUDY.yaml", help="what to compare; docs/study.md has its keys")
    parser.add_argument("--folder", metavar="FOLDER", help="where to, in place of the study's own")
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="runs whose name fits, with * and ?, or holds the text; may be given several times",
    )
    parser.add_argument("--retry", action="store_true", help="also run again what failed")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="run nothing: show the grid and what is done")
    what.add_argument("--report", action="store_true", help="run nothing: write the report of what is done")
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--jobs", type=at_least(1), default=1, metavar="N", help="runs at a time, which share the cores (default 1)"
    )
    group.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="hand runs to Slurm through submitit, or to its stand-in on this machine",
    )
    group.add_argument(
        "--cluster-option", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="parameters of submitit"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Runs, or only shows or reports."""
    from sirfp.files.lock import locked
    from sirfp.study import grid, page, results
    from sirfp.study.cells import Cells

    if args.cluster_option and not args.cluster:
        raise InputError("--cluster-option goes with --cluster")
    study = grid.load(args.study, args.folder)
    cells = Cells(study.folder)
    jobs = chosen(study.jobs, args.only)
    if args.list:
        return _listed(study, cells, jobs)
    if args.report:
        if not cells.root.is_dir():
            raise InputError(f"there is nothing to report: {cells.root} is not there; run the study first")
        page.write(study, cells)
    else:
        with locked(cells.root, "study") as killed, _stoppable():
            _work(study, cells, jobs, args, killed)
    found = results.rows(study, cells)
    failures = {job.name: cells.failure(job)["cause"] for job in jobs if cells.state(job) == "failed"}
    states = [cells.state(job) for job in jobs]
    shown: list[Any] = [results.table(found)] if found else []
    shown += [f"{name} failed: {cause}" for name, cause in failures.items()]
    shown.append(f"Report: {cells.root / page.NAME}")
    strays = cells.strays(study.jobs)
    if strays:
        shown.append(f"{strays} results of other settings lie in {cells.root} and are not in it.")
    data = {"folder": str(cells.root), "report": str(cells.root / page.NAME), **results.to_data(study, cells, found)}
    said = ""
    if failures and not args.report:
        said = f"{len(failures)} of {len(states)} runs failed, {states.count('done')} are done; --retry runs them again"
    return Outcome(data, shown, said)


def chosen(jobs: tuple, patterns: list[str] | None) -> list:
    """The runs whose names fit a pattern, with the dense ones that they need.

    Raises:
        InputError: there is none that fits one of them.
    """
    if not patterns:
        return list(jobs)
    named = set()
    for pattern in patterns:
        fits = fnmatch.fnmatchcase if re.search(r"[*?\[]", pattern) else (lambda name, text: text in name)
        fitting = [job for job in jobs if fits(job.name, pattern)]
        if not fitting:
            raise InputError(f"--only {pattern}: no run of that name; --list shows them, for example {jobs[-1].name}")
        named.update(one.name for job in fitting for one in (job, job.needs) if one)
    return [job for job in jobs if job.name in named]


def _work(study, cells, jobs: list, args: argparse.Namespace, killed: int | None) -> None:
    import sys

    from sirfp.study import page
    from sirfp.study.progress import display
    from sirfp.study.runner import Cluster, Processes
    from sirfp.study.work import work

    if args.cluster:
        runner = Cluster(args.cluster, cells.root / "submitit", _options(args.cluster_option))
    else:
        runner = Processes(args.jobs)
    if killed:
        print(f"An earlier start (process {killed}) was killed; going on.", file=sys.stderr)
    page.write(study, cells)
    with display() as show:
        work(jobs, cells, runner, args.jobs, retry=args.retry, show=show, changed=lambda: page.write(study, cells))


def _options(given: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--cluster-option takes KEY=VALUE, got {text!r}")
        options[key] = int(value) if re.fullmatch(r"\d+", value) else value
    return options


def _listed(study, cells, jobs: list) -> Outcome:
    from ..reporting.tables import Table

    states = {job.name: cells.state(job) for job in jobs}
    rows = tuple((name, state) for name, state in states.items())
    runs = [{"name": job.name, "state": states[job.name], "folder": str(cells.folder(job))} for job in jobs]
    counted = ", ".join(f"{list(states.values()).count(s)} {s}" for s in dict.fromkeys(states.values()))
    shown = [Table(("run", "state"), rows), f"{len(jobs)} runs in {cells.root}: {counted}."]
    return Outcome({"study": study.name, "folder": str(Path(cells.root)), "runs": runs}, shown)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A request to end the program ends the runs as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
