"""The grid of a study: its YAML file as a list of runs, dense ones shared by the prunings that start from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .schema import CONTROL, Spec, Variant, read

HOOKS = ("Accumulate", "Report", "PruneSteps", "Recover", "Redundancies")
"""The hooks of a pruning; a criterion's own come after the first."""


@dataclass(frozen=True)
class Job:
    """One run of a `train_net.py`.

    Attributes:
        name: "task/model/dense/seed1" or "task/model/criterion/0.4/seed1".
        task, model: their names in the study.
        criterion: its name in the study; "" of a dense run, "unpruned" of one that only trains on.
        budget: the share of FLOPs to keep; None of a dense run, 1 where it only trains on.
        seed: of all that is random.
        metric: what counts, e.g. "sem_seg/mIoU"; more is better.
        script: the `train_net.py`.
        config: the dense config.
        options: KEY VALUE pairs, but for OUTPUT_DIR and MODEL.WEIGHTS.
        iterations: how many the run has.
        needs: the dense run whose weights it starts from.
        fingerprint: of all that decides on the result; other settings, another fingerprint.
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
        """Whether it trains a network for others to prune."""
        return self.needs is None

    @property
    def prunes(self) -> bool:
        """Whether it prunes a network."""
        return self.budget is not None and self.budget < 1


@dataclass(frozen=True)
class Study:
    """A study as its file describes it.

    Attributes:
        name: of the file, without its ending.
        folder: where everything goes.
        text: the file.
        jobs: every run, each dense one before those that need it.
    """

    name: str
    folder: Path
    text: str
    jobs: tuple[Job, ...]

    @property
    def cells(self) -> tuple[Job, ...]:
        """The runs that start from dense weights."""
        return tuple(job for job in self.jobs if not job.dense)


def load(path: str | Path, folder: str | Path | None = None) -> Study:
    """Reads a study and makes its grid.

    Args:
        path: the YAML file.
        folder: in place of the one that the file names.

    Raises:
        InputError: the file is missing or something in it is wrong; the message says where.
    """
    path = Path(path)
    described, text = read(path)
    jobs = [job for spec in described.tasks for job in _task(spec)]
    return Study(path.stem, Path(folder or described.folder).absolute(), text, tuple(jobs))


def _task(spec: Spec) -> list[Job]:
    jobs: list[Job] = []
    for model, config in spec.models.items():
        texts = config_texts(config)
        trained: dict[int, Job] = {}
        for variant in spec.criteria:
            for seed in variant.seeds or spec.seeds:
                if seed not in trained:
                    trained[seed] = _dense(spec, model, config, texts, seed)
                    jobs.append(trained[seed])
                    if spec.control:
                        jobs.append(_control(spec, model, config, texts, trained[seed]))
                for budget in spec.budgets:
                    jobs.append(_cell(spec, model, config, texts, variant, budget, trained[seed]))
    return jobs


def _dense(spec: Spec, model: str, config: Path, texts: list[str], seed: int) -> Job:
    length = spec.iterations["dense"]
    options = {
        **_common(length, seed),
        "SIRFP.KEEP_FLOPS": 1.0,
        "SIRFP.HOOKS": [],
        **spec.overrides,
        **spec.dense_overrides,
    }
    name = f"{spec.name}/{model}/dense/seed{seed}"
    return _job(spec, name, model, "", None, seed, config, texts, options, length, None)


def _control(spec: Spec, model: str, config: Path, texts: list[str], needs: Job) -> Job:
    """Trains on without pruning, so that what pruning costs is told from what more training gives."""
    length = _length(spec)
    options = {
        **_common(length, needs.seed),
        "SIRFP.KEEP_FLOPS": 1.0,
        **spec.overrides,
        **{key: value for key, value in spec.pruning_overrides.items() if not key.startswith("SIRFP.")},
        "SIRFP.HOOKS": [],
    }
    name = f"{spec.name}/{model}/{CONTROL}/seed{needs.seed}"
    return _job(spec, name, model, CONTROL, 1.0, needs.seed, config, texts, options, length, needs)


def _length(spec: Spec) -> int:
    """Iterations of a pruning."""
    return spec.iterations["accumulate"] + (spec.steps - 1) * spec.iterations["recover"] + spec.iterations["finetune"]


def _cell(spec: Spec, model: str, config: Path, texts: list[str], variant: Variant, budget: float, needs: Job) -> Job:
    times, length = spec.iterations, _length(spec)
    options = {
        **_common(length, needs.seed),
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
        **variant.overrides,
    }
    name = f"{spec.name}/{model}/{variant.name}/{budget:g}/seed{needs.seed}"
    return _job(spec, name, model, variant.name, budget, needs.seed, config, texts, options, length, needs)


def _common(length: int, seed: int) -> dict[str, Any]:
    return {
        "SEED": seed,
        "SOLVER.MAX_ITER": length,
        "SOLVER.CHECKPOINT_PERIOD": max(20, -(-length // 6)),
        "TEST.EVAL_PERIOD": 0,
        "TEST.BEST_METRIC": "",
    }


def _job(spec: Spec, name, model, criterion, budget, seed, config, texts, options, length, needs) -> Job:
    pairs = tuple((key, literal(value)) for key, value in options.items())
    decides = {"config": texts, "options": sorted(pairs), "needs": needs.fingerprint if needs else "", "run": name}
    fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    return Job(
        name, spec.name, model, criterion, budget, seed, spec.metric, spec.script, config, pairs, length, needs,
        fingerprint,
    )  # fmt: skip


def literal(value: Any) -> str:
    """A value as the config reads it on a command line."""
    return value if isinstance(value, str) else repr(value)


def config_texts(path: Path) -> list[str]:
    """The text of a config, and of the bases it names, which decide on the result as well."""
    texts, seen = [], set()
    left = [path]
    while left:
        file = left.pop(0)
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        texts.append(file.read_text(encoding="utf-8"))
        for bases in re.findall(r"^_BASE_:(.*(?:\n[ -].*)*)", texts[-1], re.MULTILINE):  # one, or a list
            names = re.findall(r"[^\s\[\],\"']+", re.sub("#.*", "", bases))
            left += [(file.parent / name).resolve() for name in names]
    return texts


def as_settings(job: Job) -> Mapping[str, Any]:
    """What a run was asked to do, for its marker."""
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
