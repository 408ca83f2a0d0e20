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
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files.own_code import add_import
from .arguments import at_least
from .outcome import Outcome

if TYPE_CHECKING:  # `sirfp --help` loads no study
    from ..study.grid import Job, Study
    from ..study.run_folders import RunFolders

USAGE = "sirfp study STUDY.yaml [options]"
EXAMPLE = """examples:
  sirfp study studies/scenes.yaml --list            lists the runs and their states
  sirfp study studies/scenes.yaml                   runs all that is not done; may be stopped and started again
  sirfp study studies/scenes.yaml --only '*/sirfp/*'
  sirfp study studies/scenes.yaml --cluster slurm --jobs 20 --cluster-option slurm_partition=gpu gpus_per_node=1"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this subcommand."""
    parser.add_argument("study", metavar="STUDY.yaml", help="the study's file; docs/study.md describes its keys")
    parser.add_argument("--folder", metavar="FOLDER", help="where to write, instead of the folder that the study names")
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="only runs whose name matches a pattern with * and ?, or contains the text; may be repeated",
    )
    add_import(parser, "here and in every run")
    parser.add_argument("--retry", action="store_true", help="also repeat runs that failed")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="run nothing: list the runs and their states")
    what.add_argument("--report", action="store_true", help="run nothing: write the report of the finished runs")
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--jobs", type=at_least(1), default=1, metavar="N", help="runs at a time; they share the CPU cores (default 1)"
    )
    group.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="submit runs to Slurm through submitit, or to an imitation of it on this machine",
    )
    group.add_argument(
        "--cluster-option", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="parameters of submitit"
    )


def run(args: argparse.Namespace) -> Outcome:
    """Runs the study, or only lists its runs or writes the report."""
    from sirfp.files.lock import locked
    from sirfp.network.detectron import check_detectron2
    from sirfp.study import grid, html_report, results
    from sirfp.study.run_folders import RunFolders

    if args.cluster_option and not args.cluster:
        raise InputError("--cluster-option goes with --cluster")
    check_detectron2("sirfp study")
    study = grid.load(args.study, args.folder)
    own = tuple(str(Path(code).resolve()) if Path(code).exists() else code for code in args.imports)
    folders = RunFolders(study.folder, tuple(dict.fromkeys((*study.imports, *own))))
    jobs = chosen(study.jobs, args.only)
    if args.list:
        return _listed(study, folders, jobs)
    if args.report:
        if not folders.root.is_dir():
            raise InputError(
                f"there is nothing to report: the folder {folders.root} does not exist; run the study first"
            )
        html_report.write(study, folders)
    else:
        with locked(folders.root, "study") as killed, _stoppable():
            _run(study, folders, jobs, args, killed)
    found = results.rows(study, folders)
    data = {"folder": str(folders.root), "report": str(folders.root / html_report.NAME)}
    data |= results.to_data(study, folders, found)
    states = [folders.state(job) for job in jobs]
    failures = {job.name: folders.failure(job) for job, state in zip(jobs, states, strict=True) if state == "failed"}
    output: list[Any] = [results.table(found)] if found else []
    output += [f"{name} failed: {failure['cause']}" for name, failure in failures.items() if failure is not None]
    output.append(f"Report: {folders.root / html_report.NAME}")
    unused = folders.unused_results(study.jobs)
    if unused:
        output.append(f"{folders.root} also holds {unused} results of other settings, which the report leaves out.")
    message = ""
    if failures and not args.report:
        message = f"{len(failures)} of {len(jobs)} runs failed, {states.count('done')} are done; --retry repeats them"
    return Outcome(data, output, message)


def chosen(jobs: tuple[Job, ...], patterns: list[str] | None) -> list[Job]:
    """The runs whose names match any of the patterns, and the runs that these runs need.

    Raises:
        InputError: a pattern matches no run.
    """
    if not patterns:
        return list(jobs)
    names: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.fnmatchcase if re.search(r"[*?\[]", pattern) else (lambda name, text: text in name)
        matching = [job for job in jobs if matches(job.name, pattern)]
        if not matching:
            raise InputError(f"--only {pattern}: no run of that name; --list shows them, for example {jobs[-1].name}")
        names.update(run.name for job in matching for run in (job, *job.needed))
    return [job for job in jobs if job.name in names]


def _run(study: Study, folders: RunFolders, jobs: list[Job], args: argparse.Namespace, killed: int | None) -> None:
    """Runs jobs; updates the report after each job.

    Args:
        study: the study.
        folders: folders of the study's runs.
        jobs: the runs to do.
        args: the command line.
        killed: process id of an earlier start of the study that was killed; None if there was none.
    """
    import sys

    from sirfp.study import html_report
    from sirfp.study.progress import display
    from sirfp.study.runner import Cluster, Processes, Runner
    from sirfp.study.scheduler import run_jobs

    runner: Runner
    if args.cluster:
        runner = Cluster(args.cluster, folders.root / "submitit", _options(args.cluster_option))
    else:
        runner = Processes(args.jobs)
    if killed:
        print(f"An earlier start of this study (process {killed}) was killed; resuming.", file=sys.stderr)

    def report() -> None:
        html_report.write(study, folders)

    report()
    with display() as show:
        run_jobs(jobs, folders, runner, args.jobs, retry=args.retry, show=show, on_run_end=report)


def _options(given: list[str]) -> dict[str, Any]:
    """Parses KEY=VALUE pairs; a value of digits is an integer."""
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"--cluster-option takes KEY=VALUE, got {text!r}")
        options[key] = int(value) if re.fullmatch(r"\d+", value) else value
    return options


def _listed(study: Study, folders: RunFolders, jobs: list[Job]) -> Outcome:
    """The runs and their states."""
    from ..reporting.tables import Table

    states = {job.name: folders.state(job) for job in jobs}
    rows = tuple((name, state) for name, state in states.items())
    runs = [{"name": job.name, "state": states[job.name], "folder": str(folders.folder(job))} for job in jobs]
    counted = ", ".join(f"{list(states.values()).count(s)} {s}" for s in dict.fromkeys(states.values()))
    output = [Table(("run", "state"), rows), f"{len(jobs)} runs in {folders.root}: {counted}."]
    return Outcome({"study": study.name, "folder": str(Path(folders.root)), "runs": runs}, output)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGTERM, so that SIGTERM stops the runs in the same way as Ctrl-C."""
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
