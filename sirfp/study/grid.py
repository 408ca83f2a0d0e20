"""Turns a study's YAML file into a list of runs, and says which run each one needs.

All pruning runs of one model and seed start from one dense run. A run from scratch trains the pruned network of a
pruning run from its initial weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .overrides import WEIGHTS
from .rows import CONTROL, RowSpec
from .schema import TaskSpec, read_study

HOOKS = ("Accumulate", "Report", "PruneSteps", "Recover", "Redundancies")
"""Hooks of a pruning run. Hooks that a criterion adds are inserted after the first."""
CHECKPOINTS = 6
"""Number of checkpoints in a run: an interrupted run loses at most a sixth of its iterations."""
MIN_CHECKPOINT_PERIOD = 20
"""Least number of iterations between checkpoints, so that a short run does not write one every few iterations."""


@dataclass(frozen=True)
class Job:
    """One run of a `train_net.py`.

    Attributes:
        name: "task/model/dense/seed1" or "task/model/criterion/0.4/seed1".
        task, model: names of the task and the model in the study.
        criterion: name of the row in the study; "" for a dense run, "unpruned" for a control run.
        budget: share of FLOPs to keep; None for a dense run, 1 for a control run.
        seed: the random seed.
        metric: the metric to compare, e.g. "sem_seg/mIoU"; higher is better.
        script: the `train_net.py`.
        config: the config file of the dense model.
        options: config overrides as KEY VALUE pairs, except OUTPUT_DIR, SIRFP.PLAN and the weights of the run that this
            one needs, which take the place of a `MODEL.WEIGHTS` among them.
        iterations: number of training iterations.
        needs: the run that must be done first: the dense run whose weights this run starts from, or, for a run from
            scratch, the pruning run whose plan it trains. None for a dense run.
        fingerprint: hash of all settings that influence the result.
        scratch: True for a run that trains a pruned network from its initial weights.
    """

    name: str
    task: str
    model: str
    criterion: str
    budget: float | None
    seed: int
    metric: str
    script: Path
    config: Path
    options: tuple[tuple[str, str], ...]
    iterations: int
    needs: Job | None
    fingerprint: str
    scratch: bool = False

    @property
    def dense(self) -> bool:
        """True for a run that trains a dense network. Pruning and control runs start from its weights."""
        return self.needs is None

    @property
    def prunes(self) -> bool:
        """True for a run that prunes."""
        return self.budget is not None and self.budget < 1 and not self.scratch

    @property
    def needed(self) -> tuple[Job, ...]:
        """The runs that must be done before this one, the dense run last."""
        return (self.needs, *self.needs.needed) if self.needs else ()


@dataclass(frozen=True)
class Study:
    """A study with all its runs.

    Attributes:
        name: the file's name without its extension.
        folder: where runs and the report are written.
        text: the content of the file.
        jobs: all runs; each run comes after the run that it needs.
        imports: the user's own code that the file names; every run imports it first.
    """

    name: str
    folder: Path
    text: str
    jobs: tuple[Job, ...]
    imports: tuple[str, ...] = ()

    @property
    def cells(self) -> tuple[Job, ...]:
        """The runs that need another run: pruning runs, control runs and runs from scratch."""
        return tuple(job for job in self.jobs if not job.dense)


def load(path: str | Path, folder: str | Path | None = None) -> Study:
    """Reads a study's file and lists its runs.

    Args:
        path: the YAML file.
        folder: where to write, instead of the folder that the file names.

    Raises:
        InputError: the file is missing or has a mistake; the message names the key.
    """
    path = Path(path)
    content, text = read_study(path)
    code = own_code_texts(content.imports)
    jobs = [job for spec in content.tasks for job in _task_jobs(spec, code)]
    return Study(path.stem, Path(folder or content.folder).absolute(), text, tuple(jobs), content.imports)


def _task_jobs(spec: TaskSpec, code: list[str]) -> list[Job]:
    """Lists the runs of a task.

    Args:
        spec: the task.
        code: texts of the user's own code, on which results depend as on the config.
    """
    jobs: list[Job] = []
    for model, config in spec.models.items():
        texts = [*config_texts(config), *code]
        trained: dict[int, Job] = {}
        pruned: dict[tuple[str, float, int], Job] = {}
        for row in spec.rows:
            for seed in row.seeds:
                if seed not in trained:
                    trained[seed] = _dense_job(spec, model, config, texts, seed)
                    jobs.append(trained[seed])
                    if spec.control:
                        jobs.append(_control_job(spec, model, config, texts, trained[seed]))
                for budget in spec.budgets:
                    if row.scratch:
                        needs = pruned[row.scratch, budget, seed]
                        jobs.append(_scratch_job(spec, model, config, texts, row, needs))
                        continue
                    job = _pruning_job(spec, model, config, texts, row, budget, trained[seed])
                    jobs.append(job)
                    pruned[row.name, budget, seed] = job
    return jobs


def _dense_job(spec: TaskSpec, model: str, config: Path, texts: list[str], seed: int) -> Job:
    length = spec.iterations["dense"]
    options = {
        **_shared_options(length, seed),
        "SIRFP.KEEP_FLOPS": 1.0,
        "SIRFP.HOOKS": [],
        **spec.overrides,
        **spec.dense_overrides,
    }
    name = f"{spec.name}/{model}/dense/seed{seed}"
    return _job(spec, name, model, "", None, seed, config, texts, options, length, None)


def _unpruned_options(spec: TaskSpec, length: int, seed: int) -> dict[str, Any]:
    """Options of a run without cuts that stands beside pruning runs: their settings, except those of sirfp."""
    return {
        **_shared_options(length, seed),
        "SIRFP.KEEP_FLOPS": 1.0,
        **spec.overrides,
        **{key: value for key, value in spec.pruning_overrides.items() if not key.startswith("SIRFP.")},
    }


def _control_job(spec: TaskSpec, model: str, config: Path, texts: list[str], needs: Job) -> Job:
    """A control run: trains the dense network further, without pruning, for the iterations of a pruning run.

    A pruning run changes the metric in two ways: pruning lowers it, longer training raises it. The control run shows
    the effect of longer training alone.
    """
    length = _pruning_iterations(spec)
    options = {**_unpruned_options(spec, length, needs.seed), "SIRFP.HOOKS": []}
    name = f"{spec.name}/{model}/{CONTROL}/seed{needs.seed}"
    return _job(spec, name, model, CONTROL, 1.0, needs.seed, config, texts, options, length, needs)


def _scratch_job(spec: TaskSpec, model: str, config: Path, texts: list[str], row: RowSpec, needs: Job) -> Job:
    """A run that trains the network of a pruning run from the weights that the config starts from.

    It trains for as many iterations as the dense run and the pruning run together, on one schedule, with the settings
    of the pruning run except those of sirfp. The comparison is that of Liu et al., "Rethinking the Value of Network
    Pruning", ICLR 2019, section 3.
    """
    length = spec.iterations["dense"] + _pruning_iterations(spec)
    options = {
        **_unpruned_options(spec, length, needs.seed),
        "SIRFP.HOOKS": list(row.hooks),
        **dict(row.overrides),
    }
    name = f"{spec.name}/{model}/{row.name}/{needs.budget:g}/seed{needs.seed}"
    return _job(spec, name, model, row.name, needs.budget, needs.seed, config, texts, options, length, needs, True)


def _pruning_iterations(spec: TaskSpec) -> int:
    """Number of iterations of a pruning run."""
    return spec.iterations["accumulate"] + (spec.steps - 1) * spec.iterations["recover"] + spec.iterations["finetune"]


def _pruning_job(
    spec: TaskSpec, model: str, config: Path, texts: list[str], row: RowSpec, budget: float, needs: Job
) -> Job:
    times, length = spec.iterations, _pruning_iterations(spec)
    options = {
        **_shared_options(length, needs.seed),
        "SIRFP.CRITERION": row.criterion,
        "SIRFP.KEEP_FLOPS": budget,
        "SIRFP.STEPS": row.steps or spec.steps,
        "SIRFP.START_ITER": 0,
        "SIRFP.ACCUMULATE_ITERS": times["accumulate"],
        "SIRFP.RECOVER_ITERS": times["recover"],
        "SIRFP.SEED": needs.seed,
        "SIRFP.HOOKS": [HOOKS[0], *row.hooks, *HOOKS[1:]],
        **spec.overrides,
        **spec.pruning_overrides,
        **dict(row.overrides),
    }
    name = f"{spec.name}/{model}/{row.name}/{budget:g}/seed{needs.seed}"
    return _job(spec, name, model, row.name, budget, needs.seed, config, texts, options, length, needs)


def _shared_options(length: int, seed: int) -> dict[str, Any]:
    """Options of every run. Evaluation is off during training: only the final network is evaluated."""
    return {
        "SEED": seed,
        "SOLVER.MAX_ITER": length,
        "SOLVER.CHECKPOINT_PERIOD": max(MIN_CHECKPOINT_PERIOD, -(-length // CHECKPOINTS)),
        "TEST.EVAL_PERIOD": 0,
        "TEST.BEST_METRIC": "",
    }


def _job(
    spec: TaskSpec,
    name: str,
    model: str,
    criterion: str,
    budget: float | None,
    seed: int,
    config: Path,
    texts: list[str],
    options: Mapping[str, Any],
    length: int,
    needs: Job | None,
    scratch: bool = False,
) -> Job:
    """Makes a run. Its fingerprint is a hash of its name, its options, its config's text and the run that it needs."""
    from ..config.options import old_key

    pairs = tuple((key, literal(value)) for key, value in options.items())
    named = sorted((old_key(key), value) for key, value in pairs)  # old names: renaming a key changes no fingerprint
    decides = {"config": texts, "options": named, "needs": needs.fingerprint if needs else "", "run": name}
    fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    return Job(
        name, spec.name, model, criterion, budget, seed, spec.metric, spec.script, config, pairs, length, needs,
        fingerprint, scratch,
    )  # fmt: skip


def literal(value: Any) -> str:
    """Formats a value so that the config parses it from the command line."""
    return value if isinstance(value, str) else repr(value)


def own_code_texts(imports: Sequence[str]) -> list[str]:
    """The contents of the files and packages in `imports`; of a module, its name only."""
    texts = []
    for code in map(Path, imports):
        files = sorted(code.rglob("*.py")) if code.is_dir() else [code] if code.is_file() else []
        texts += [file.read_text(encoding="utf-8", errors="replace") for file in files] or [str(code)]
    return texts


def config_texts(path: Path) -> list[str]:
    """Reads a config file and, recursively, the files in its _BASE_; returns their contents."""
    texts: list[str] = []
    seen: set[Path] = set()
    queue = [path]
    while queue:
        file = queue.pop(0)
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        texts.append(file.read_text(encoding="utf-8"))
        for bases in re.findall(r"^_BASE_:(.*(?:\n[ -].*)*)", texts[-1], re.MULTILINE):  # a name or a list of them
            names = re.findall(r"[^\s\[\],\"']+", re.sub("#.*", "", bases))
            queue += [(file.parent / name).resolve() for name in names]
    return texts


def settings(job: Job) -> Mapping[str, Any]:
    """Settings of a run in readable form, for `done.json` or `failed.json`."""
    options = dict(job.options)
    if job.needs and not job.scratch:
        options.pop(WEIGHTS, None)  # the run starts from the weights of the dense run
    return {
        "task": job.task,
        "model": job.model,
        "criterion": job.criterion,
        "budget": job.budget,
        "seed": job.seed,
        "metric": job.metric,
        "config": job.config.name,
        "options": options,
    }
