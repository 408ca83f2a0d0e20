"""What is done of a study: each run's folder with its markers, and the lock of the whole.

A folder's name holds the fingerprint of its run's settings, so other settings never find an old result, and going back
to the old ones finds it again. `done.json` and `failed.json` are written whole; what has neither goes on.
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
from .grid import Job, as_settings
from .markers import read_done, read_failed

DONE, FAILED, CONSOLE, WEIGHTS = "done.json", "failed.json", "console.txt", "model_final.pth"
TAIL = 40
"""Lines of a failed run's output that are kept with its cause."""


@dataclass(frozen=True)
class Cells:
    """The folders of a study's runs, below its own."""

    root: Path

    def folder(self, job: Job) -> Path:
        """Where a run writes."""
        kind = "dense" if job.dense else "cells"
        return self.root / kind / f"{job.name.replace('/', '-')}-{job.fingerprint[:8]}"

    def state(self, job: Job) -> str:
        """One of "done", "failed", "started" and "new"."""
        if self.result(job) is not None:
            return "done"
        if self.failure(job) is not None:
            return "failed"
        return "started" if self.folder(job).is_dir() else "new"

    def result(self, job: Job) -> dict[str, Any] | None:
        """What a finished run found, or None.

        Raises:
            InputError: it has no such metric as the study now asks for.
        """
        found = read_done(self.folder(job) / DONE)
        if found is None or found.get("fingerprint") != job.fingerprint:
            return None
        problem = _lacks(found["rows"], job.metric)
        if problem:
            raise InputError(f"{job.name}: {problem}")
        return found if not job.dense or (self.folder(job) / WEIGHTS).is_file() else None

    def failure(self, job: Job) -> dict[str, Any] | None:
        """Why a run failed, or None."""
        return read_failed(self.folder(job) / FAILED)

    def iteration(self, job: Job) -> int:
        """How many iterations a run has done, as far as it has said."""
        try:
            with open(self.folder(job) / "metrics.json", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
                said = re.findall(rb'"iteration": (\d+)', file.read())
        except OSError:
            return 0
        return min(int(said[-1]) + 1, job.iterations) if said else 0

    def arguments(self, job: Job) -> list[str]:
        """The command line of a run, without the Python; it goes on where there is a checkpoint."""
        options = {**dict(job.options), "OUTPUT_DIR": str(self.folder(job))}
        if job.needs:
            options["MODEL.WEIGHTS"] = str(self.folder(job.needs) / WEIGHTS)
        pairs = [word for pair in options.items() for word in pair]
        return [str(job.script), "--config-file", str(job.config), "--resume", *pairs]

    def begin(self, job: Job) -> None:
        """Makes the folder; an earlier failure is forgotten."""
        self.folder(job).mkdir(parents=True, exist_ok=True)
        (self.folder(job) / FAILED).unlink(missing_ok=True)

    def finish(self, job: Job, seconds: float | None) -> str:
        """Reads what a run has left and writes its marker, with how long it took where that is known.

        Returns:
            Why it is no result; "" where it is one.
        """
        folder = self.folder(job)
        try:
            found = _pruned(folder) if job.prunes else _trained(folder)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return f"the run ended well but left no result: {' '.join(str(error).split())}"
        problem = _lacks(found["rows"], job.metric)
        if problem:
            return problem
        content = {"fingerprint": job.fingerprint, "settings": as_settings(job), "seconds": seconds, **found}
        with whole_file(folder / DONE) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n")
        self._tidy(job)
        return ""

    def fail(self, job: Job, cause: str) -> dict[str, Any]:
        """Keeps why a run failed and the end of what it said."""
        tail = self.tail(job)
        failure = {"cause": cause or _cause(tail), "tail": tail, "settings": as_settings(job)}
        with whole_file(self.folder(job) / FAILED) as beside:
            beside.write_text(json.dumps(failure, indent=1) + "\n")
        return failure

    def tail(self, job: Job) -> list[str]:
        """The last lines that a run has said."""
        try:
            text = (self.folder(job) / CONSOLE).read_text(errors="replace")
        except OSError:
            return []
        return re.sub(r"\x1b\[[0-9;]*m", "", text[-40000:]).rstrip().splitlines()[-TAIL:]

    def strays(self, jobs: tuple[Job, ...]) -> int:
        """How many results of other settings lie beside those of the study."""
        own = {self.folder(job) for job in jobs}
        return sum(file.parent not in own for file in self.root.glob(f"*/*/{DONE}"))

    def _tidy(self, job: Job) -> None:
        """Removes checkpoints that nothing needs any more."""
        for file in self.folder(job).glob("*.pth"):
            if not (job.dense and file.name == WEIGHTS):
                file.unlink()
        (self.folder(job) / "last_checkpoint").unlink(missing_ok=True)
        (self.folder(job) / "dense.safetensors").unlink(missing_ok=True)
        shutil.rmtree(self.folder(job) / "inference", ignore_errors=True)


def _trained(folder: Path) -> dict[str, Any]:
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"there is no {WEIGHTS}")
    metrics: dict[str, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a line that was cut off
            metrics |= {k: v for k, v in json.loads(line).items() if "/" in k and isinstance(v, (int, float))}
    return {"rows": {"dense": {"metrics": metrics}}}


def _pruned(folder: Path) -> dict[str, Any]:
    rows = json.loads((folder / "pruning.json").read_text())
    plan = PruningPlan.from_json((folder / "plan.json").read_text())
    widths = {name: [len(kept), plan.channels[name]] for name, kept in plan.kept.items()}
    return {"rows": rows, "flops": plan.flops, "params": plan.params, "widths": widths}


def _lacks(rows: Mapping[str, Any], metric: str) -> str:
    """What is wrong with the metric of the network at the end of a run; "" where it is there."""
    metrics = list(rows.values())[-1]["metrics"]
    if metric not in metrics:
        return f"the run has no metric {metric}{near(metric, metrics) or '; it has ' + ', '.join(metrics)}"
    return "" if math.isfinite(metrics[metric]) else f"{metric} is {metrics[metric]} at the end of the run"


def _cause(tail: list[str]) -> str:
    """The line that says what went wrong: sirfp's own, or the last of a traceback."""
    for line in reversed(tail):
        if re.match(r"error: |[\w.]+(Error|Exception|Interrupt|Exit)\b", line):
            return line.removeprefix("error: ")
    return tail[-1] if tail else "it said nothing"
