"""Turns a study's YAML file into a list of runs. All pruning runs of one model and seed start from one dense run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .schema import CONTROL, CriterionSpec, TaskSpec, read_study

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
        criterion: name of the criterion in the study; "" for a dense run, "unpruned" for a control run.
        budget: share of FLOPs to keep; None for a dense run, 1 for a control run.
        seed: the random seed.
        metric: the metric to compare, e.g. "sem_seg/mIoU"; higher is better.
        script: the `train_net.py`.
        config: the config file of the dense model.
        options: config overrides as KEY VALUE pairs, except OUTPUT_DIR and MODEL.WEIGHTS.
        iterations: number of training iterations.
        needs: the dense run whose weights this run starts from; None for a dense run.
        fingerprint: hash of all settings that influence the result.
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

    @property
    def dense(self) -> bool:
        """True for a run that trains a dense network. Pruning and control runs start from its weights."""
        return self.needs is None

    @property
    def prunes(self) -> bool:
        """True for a run that prunes."""
        return self.budget is not None and self.budget < 1


@dataclass(frozen=True)
class Study:
    """A study with all its runs.

    Attributes:
        name: the file's name without its extension.
        folder: where runs and the report are written.
        text: the content of the file.
        jobs: all runs; each dense run precedes the runs that start from its weights.
    """

    name: str
    folder: Path
    text: str
    jobs: tuple[Job, ...]

    @property
    def cells(self) -> tuple[Job, ...]:
        """The runs that start from dense weights: pruning runs and control runs."""
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
    jobs = [job for spec in content.tasks for job in _task_jobs(spec)]
    return Study(path.stem, Path(folder or content.folder).absolute(), text, tuple(jobs))


def _task_jobs(spec: TaskSpec) -> list[Job]:
    jobs: list[Job] = []
    for model, config in spec.models.items():
        texts = config_texts(config)
        trained: dict[int, Job] = {}
        for variant in spec.criteria:
            for seed in variant.seeds or spec.seeds:
                if seed not in trained:
                    trained[seed] = _dense_job(spec, model, config, texts, seed)
                    jobs.append(trained[seed])
                    if spec.control:
                        jobs.append(_control_job(spec, model, config, texts, trained[seed]))
                for budget in spec.budgets:
                    jobs.append(_pruning_job(spec, model, config, texts, variant, budget, trained[seed]))
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


def _control_job(spec: TaskSpec, model: str, config: Path, texts: list[str], needs: Job) -> Job:
    """A control run: trains the dense network further, without pruning, for the iterations of a pruning run.

    A pruning run changes the metric in two ways: pruning lowers it, longer training raises it. The control run shows
    the effect of longer training alone.
    """
    length = _pruning_iterations(spec)
    options = {
        **_shared_options(length, needs.seed),
        "SIRFP.KEEP_FLOPS": 1.0,
        **spec.overrides,
        **{key: value for key, value in spec.pruning_overrides.items() if not key.startswith("SIRFP.")},
        "SIRFP.HOOKS": [],
    }
    name = f"{spec.name}/{model}/{CONTROL}/seed{needs.seed}"
    return _job(spec, name, model, CONTROL, 1.0, needs.seed, config, texts, options, length, needs)


def _pruning_iterations(spec: TaskSpec) -> int:
    """Number of iterations of a pruning run."""
    return spec.iterations["accumulate"] + (spec.steps - 1) * spec.iterations["recover"] + spec.iterations["finetune"]


def _pruning_job(
    spec: TaskSpec, model: str, config: Path, texts: list[str], variant: CriterionSpec, budget: float, needs: Job
) -> Job:
    times, length = spec.iterations, _pruning_iterations(spec)
    options = {
        **_shared_options(length, needs.seed),
        "SIRFP.CRITERION": variant.criterion,
        "SIRFP.KEEP_FLOPS": budget,
        "SIRFP.STEPS": variant.steps or spec.steps,
        "SIRFP.START_ITER": 0,
        "SIRFP.ACCUMULATE_ITERS": times["accumulate"],
        "SIRFP.RECOVER_ITERS": times["recover"],
        "SIRFP.SEED": needs.seed,
        "SIRFP.HOOKS": [HOOKS[0], *variant.hooks, *HOOKS[1:]],
        **spec.overrides,
        **spec.pruning_overrides,
        **dict(variant.overrides),
    }
    name = f"{spec.name}/{model}/{variant.name}/{budget:g}/seed{needs.seed}"
    return _job(spec, name, model, variant.name, budget, needs.seed, config, texts, options, length, needs)


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
) -> Job:
    """Makes a run. Its fingerprint is a hash of its name, its options, its config's text and the run that it needs."""
    from ..config.options import old_key

    pairs = tuple((key, literal(value)) for key, value in options.items())
    named = sorted((old_key(key), value) for key, value in pairs)  # old names: renaming a key changes no fingerprint
    decides = {"config": texts, "options": named, "needs": needs.fingerprint if needs else "", "run": name}
    fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    return Job(
        name, spec.name, model, criterion, budget, seed, spec.metric, spec.script, config, pairs, length, needs,
        fingerprint,
    )  # fmt: skip


def literal(value: Any) -> str:
    """Formats a value so that the config parses it from the command line."""
    return value if isinstance(value, str) else repr(value)


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
    return {
        "task": job.task,
        "model": job.model,
        "criterion": job.criterion,
        "budget": job.budget,
        "seed": job.seed,
        "metric": job.metric,
        "config": job.config.name,
        "options": dict(job.options),
    }
