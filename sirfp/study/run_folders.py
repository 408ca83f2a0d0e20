"""The folders of a study's runs: states, results, and the command lines that start or resume runs.

A folder's name contains the fingerprint of its run's settings. Changed settings get another folder; going back to the
old settings finds the old result. A finished run has `done.json`, a failed run `failed.json`; both are written
atomically. A folder with neither file belongs to an interrupted run, which is resumed from its checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, near
from ..files.whole import whole_file
from ..structure.plan import PruningPlan
from .grid import Job, settings
from .markers import read_done, read_failed

DONE, FAILED, CONSOLE = "done.json", "failed.json", "console.txt"
WEIGHTS, PLAN = "model_final.pth", "plan.json"
TAIL_LINES = 40
"""Number of last lines of a failed run's output stored in `failed.json`: enough for a traceback."""
LOG_BYTES = 65536
"""Bytes read from the end of `metrics.json` to find the last iteration; a line of that file is far shorter."""


@dataclass(frozen=True)
class RunFolders:
    """The folders of a study's runs.

    Args:
        root: the study's folder.
        imports: .py files or modules with the user's own code, which each run imports first.
    """

    root: Path
    imports: tuple[str, ...] = ()

    def folder(self, job: Job) -> Path:
        """The folder that a run writes to."""
        kind = "dense" if job.dense else "cells"
        return self.root / kind / f"{job.name.replace('/', '-')}-{job.fingerprint[:8]}"

    def state(self, job: Job) -> str:
        """The state of a run: "done", "failed", "started" (interrupted or running) or "new"."""
        if self.result(job) is not None:
            return "done"
        if self.failure(job) is not None:
            return "failed"
        return "started" if self.folder(job).is_dir() else "new"

    def result(self, job: Job) -> dict[str, Any] | None:
        """The content of a finished run's `done.json`; None if the run is not finished.

        Raises:
            InputError: the result lacks the metric that the study names.
        """
        found = read_done(self.folder(job) / DONE)
        if found is None or found.get("fingerprint") != job.fingerprint:
            return None
        problem = _metric_problem(found["rows"], job.metric)
        if problem:
            raise InputError(f"{job.name}: {problem}")
        return found if not job.dense or (self.folder(job) / WEIGHTS).is_file() else None

    def failure(self, job: Job) -> dict[str, Any] | None:
        """The content of a failed run's `failed.json`, with its cause; None if the run has not failed."""
        return read_failed(self.folder(job) / FAILED)

    def iteration(self, job: Job) -> int:
        """Number of iterations a run has done, according to its `metrics.json`; 0 if the file is missing."""
        try:
            with open(self.folder(job) / "metrics.json", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
                found = re.findall(rb'"iteration": (\d+)', file.read())
        except OSError:
            return 0
        return min(int(found[-1]) + 1, job.iterations) if found else 0

    def arguments(self, job: Job) -> list[str]:
        """The command line of a run, after `python`; `--resume` continues from the last checkpoint, if there is one."""
        options = {**dict(job.options), "OUTPUT_DIR": str(self.folder(job))}
        if job.needs and job.scratch:
            options["SIRFP.PLAN"] = str(self.folder(job.needs) / PLAN)
        elif job.needs:
            options["MODEL.WEIGHTS"] = str(self.folder(job.needs) / WEIGHTS)
        pairs = [word for pair in options.items() for word in pair]
        own = [word for code in self.imports for word in ("--import", code)]
        return [str(job.script), "--config-file", str(job.config), "--resume", *own, *pairs]

    def begin(self, job: Job) -> None:
        """Creates the folder and deletes the marker of an earlier failure."""
        self.folder(job).mkdir(parents=True, exist_ok=True)
        (self.folder(job) / FAILED).unlink(missing_ok=True)

    def finish(self, job: Job, seconds: float | None) -> str:
        """Reads the files of a run that exited with 0, writes its `done.json` and deletes its checkpoints.

        Args:
            job: the run.
            seconds: duration of the run; None for a resumed run, whose total duration is unknown.

        Returns:
            The reason why the files are no valid result; "" for a valid result.
        """
        folder = self.folder(job)
        try:
            found = _pruning_result(folder) if job.prunes else _dense_result(folder)
            if job.scratch and job.needs:
                found |= _plan_result(self.folder(job.needs))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return f"the run exited without an error but left no result: {' '.join(str(error).split())}"
        problem = _metric_problem(found["rows"], job.metric)
        if problem:
            return problem
        content = {"fingerprint": job.fingerprint, "settings": settings(job), "seconds": seconds, **found}
        with whole_file(folder / DONE) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n")
        self._tidy(job)
        return ""

    def fail(self, job: Job, cause: str) -> dict[str, Any]:
        """Writes the `failed.json` of a run: the cause of the failure and the last lines of the output.

        Args:
            job: the run.
            cause: cause of the failure; "" to take it from the output.

        Returns:
            The content of the file.
        """
        tail = self.tail(job)
        failure = {"cause": cause or _cause(tail), "tail": tail, "settings": settings(job)}
        with whole_file(self.folder(job) / FAILED) as beside:
            beside.write_text(json.dumps(failure, indent=1) + "\n")
        return failure

    def tail(self, job: Job) -> list[str]:
        """The last `TAIL_LINES` lines of a run's output, without terminal colours."""
        try:
            text = (self.folder(job) / CONSOLE).read_text(errors="replace")
        except OSError:
            return []
        return re.sub(r"\x1b\[[0-9;]*m", "", text[-40000:]).rstrip().splitlines()[-TAIL_LINES:]

    def unused_results(self, jobs: tuple[Job, ...]) -> int:
        """Number of finished runs in the study's folder that are not among `jobs`, e.g. after a change of settings."""
        own = {self.folder(job) for job in jobs}
        return sum(file.parent not in own for file in self.root.glob(f"*/*/{DONE}"))

    def _tidy(self, job: Job) -> None:
        """Deletes large files of a finished run. A dense run keeps its final weights, which other runs read."""
        for file in self.folder(job).glob("*.pth"):
            if not (job.dense and file.name == WEIGHTS):
                file.unlink()
        (self.folder(job) / "last_checkpoint").unlink(missing_ok=True)
        (self.folder(job) / "dense.safetensors").unlink(missing_ok=True)
        shutil.rmtree(self.folder(job) / "inference", ignore_errors=True)


def _dense_result(folder: Path) -> dict[str, Any]:
    """The result of a run without pruning: its last metrics.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS}")
    metrics: dict[str, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the last line of an interrupted run may be incomplete
            metrics |= {k: v for k, v in json.loads(line).items() if "/" in k and isinstance(v, (int, float))}
    return {"rows": {"dense": {"metrics": metrics}}}


def _pruning_result(folder: Path) -> dict[str, Any]:
    """The result of a pruning run: metrics of each stage, (dense, pruned) costs, {group: [kept, dense]} widths.

    Raises:
        OSError, ValueError: a file is missing or damaged.
    """
    return {"rows": json.loads((folder / "pruning.json").read_text()), **_plan_result(folder)}


def _plan_result(folder: Path) -> dict[str, Any]:
    """Costs and widths of the network that a pruning run has left, see `_pruning_result`."""
    plan = PruningPlan.from_json((folder / PLAN).read_text())
    widths = {name: [len(kept), plan.channels[name]] for name, kept in plan.kept.items()}
    return {"flops": plan.flops, "params": plan.params, "widths": widths}


def _metric_problem(rows: Mapping[str, Any], metric: str) -> str:
    """The reason why the final metric of a run is not usable (missing or not finite); "" if it is usable."""
    metrics = list(rows.values())[-1]["metrics"]
    if metric not in metrics:
        return f"the run has no metric {metric}{near(metric, metrics) or '; it has ' + ', '.join(metrics)}"
    return "" if math.isfinite(metrics[metric]) else f"{metric} is {metrics[metric]} at the end of the run"


def _cause(tail: list[str]) -> str:
    """The line of a failed run's output that names the error: sirfp's own message or the last line of a traceback."""
    for line in reversed(tail):
        if re.match(r"error: |[\w.]+(Error|Exception|Interrupt|Exit)\b", line):
            return line.removeprefix("error: ")
    return tail[-1] if tail else "the run printed nothing"
