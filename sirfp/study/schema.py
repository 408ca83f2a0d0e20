"""Reads a study's YAML file and checks it key by key; each error is one line that names the key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, near
from ..files.yaml_files import read_yaml
from .overrides import check_key, check_options

SHARED_KEYS = (
    "iterations", "steps", "criteria", "budgets", "seeds", "control", "overrides", "dense_overrides",
    "pruning_overrides",
)  # fmt: skip
"""Keys that apply to all tasks at the top level of the file; a task may repeat them with its own values."""
CONTROL = "unpruned"
"""Criterion name of control runs (key `control`): they train the dense network for as long as a pruning run."""
TASK_KEYS = ("project", "script", "metric", "models", *SHARED_KEYS)
CRITERION_KEYS = ("name", "criterion", "hooks", "overrides", "seeds", "steps")
ITERATION_KEYS = ("dense", "accumulate", "recover", "finetune")
PARENTS = 4
"""Number of folders that are searched, starting at the study's file and going up."""
SET_BY_STUDY = {
    "SEED": "seeds", "SIRFP.SEED": "seeds", "SIRFP.CRITERION": "criteria", "SIRFP.KEEP_FLOPS": "budgets",
    "SIRFP.STEPS": "steps", "SIRFP.START_ITER": "iterations", "SIRFP.ACCUMULATE_ITERS": "iterations",
    "SIRFP.RECOVER_ITERS": "iterations", "SOLVER.MAX_ITER": "iterations", "OUTPUT_DIR": "folder",
    "MODEL.WEIGHTS": "models",
}  # fmt: skip
"""{config key that only the study may set: the study's key for it}."""


@dataclass(frozen=True)
class CriterionSpec:
    """An entry of `criteria`.

    Attributes:
        name: name in the study.
        criterion: name of the registered criterion.
        hooks: training hooks to insert after Accumulate.
        overrides: {config key: value} for the runs of this entry.
        seeds: seeds of the runs; empty for the seeds of the task.
        steps: number of cuts; None for the task's number.
    """

    name: str
    criterion: str
    hooks: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    steps: int | None = None


@dataclass(frozen=True)
class TaskSpec:
    """A task of a study, with defaults and top-level values filled in; docs/study.md describes the keys."""

    name: str
    script: Path
    metric: str
    models: Mapping[str, Path]
    iterations: Mapping[str, int]
    steps: int
    criteria: tuple[CriterionSpec, ...]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    control: bool
    overrides: Mapping[str, Any]
    dense_overrides: Mapping[str, Any]
    pruning_overrides: Mapping[str, Any]


@dataclass(frozen=True)
class StudyFile:
    """The content of a study's file."""

    folder: Path
    tasks: tuple[TaskSpec, ...]


def read_study(path: Path) -> tuple[StudyFile, str]:
    """Reads and checks a study's file.

    Returns:
        The checked content and the text of the file.

    Raises:
        InputError: the file is missing or is no YAML, or a key or value is not valid.
    """
    if not path.is_file():
        known = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise InputError(f"there is no study {path}{near(path.name, known)}")
    content, text = read_yaml(path, "study")
    try:
        top = _mapping(content, "the study")
        _check_keys(top, ("folder", "tasks", *SHARED_KEYS), "the study")
        tasks = _mapping(_required(top, "tasks", "the study"), "tasks")
        if not tasks:
            raise InputError("tasks names no task")
        folder = _text(top.get("folder", f"output/studies/{path.stem}"), "folder")
        specs = tuple(_task_spec(_name(name, "tasks"), node, top, path) for name, node in tasks.items())
        return StudyFile(Path(folder), specs), text
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _task_spec(name: str, node: Any, top: Mapping[str, Any], path: Path) -> TaskSpec:
    """Checks one task.

    Args:
        name: name of the task.
        node: block of the task in the file.
        top: content of the whole file; its values are defaults for keys that the task lacks.
        path: the file.
    """
    at = f"tasks.{name}"
    own = _mapping(node, at)
    _check_keys(own, TASK_KEYS, at)
    values = {key: own.get(key, top.get(key)) for key in SHARED_KEYS}
    for key in ("iterations", "overrides", "dense_overrides", "pruning_overrides"):  # merged entry by entry
        values[key] = {**_mapping(top.get(key) or {}, key), **_mapping(own.get(key) or {}, f"{at}.{key}")}
    for key in ("criteria", "budgets"):
        if not values[key]:
            raise InputError(f"{at} lacks {key}, and so does the study")
    script = _script(own, name, path, at)
    overrides = _overrides(values["overrides"], f"{at}.overrides")
    pruning_overrides = _overrides(values["pruning_overrides"], f"{at}.pruning_overrides")
    criteria = _criteria(values["criteria"], f"{at}.criteria")
    for i, variant in enumerate(criteria):
        settings = overrides | pruning_overrides | dict(variant.overrides)
        check_options(variant.criterion, settings, f"{at}.criteria[{i}]")
    return TaskSpec(
        name,
        script,
        models=_models(own, path, script, at),
        iterations=_iterations(values["iterations"], f"{at}.iterations"),
        metric=_text(_required(own, "metric", at), f"{at}.metric"),
        steps=_count(values["steps"] if values["steps"] is not None else 1, f"{at}.steps", 1),
        criteria=criteria,
        budgets=tuple(_budget(value, f"{at}.budgets") for value in _nonempty_list(values["budgets"], f"{at}.budgets")),
        seeds=_seeds([0] if values["seeds"] is None else values["seeds"], f"{at}.seeds"),
        control=_flag(values["control"] or False, f"{at}.control"),
        overrides=overrides,
        dense_overrides=_overrides(values["dense_overrides"], f"{at}.dense_overrides"),
        pruning_overrides=pruning_overrides,
    )


def _models(own: Mapping[str, Any], path: Path, script: Path, at: str) -> dict[str, Path]:
    """{model: its config file} of a task."""
    models = {}
    for model, file in _mapping(_required(own, "models", at), f"{at}.models").items():
        place = f"{at}.models.{model}"
        models[_name(model, f"{at}.models")] = _existing_file(_text(file, place), path, script, place)
    if not models:
        raise InputError(f"{at}.models names no model")
    return models


def _iterations(given: Mapping[str, Any], at: str) -> dict[str, int]:
    """{phase: number of iterations}. Only `recover` may be 0 or missing: a single cut needs no recovery."""
    _check_keys(given, ITERATION_KEYS, at)
    given = {"recover": 0, **given}
    return {key: _count(_required(given, key, at), f"{at}.{key}", int(key != "recover")) for key in ITERATION_KEYS}


def _script(own: Mapping[str, Any], name: str, path: Path, at: str) -> Path:
    """The `train_net.py` of a task: the task's `script`, else the script of its `project`.

    Without either key, the project has the task's name.
    """
    if "script" in own and "project" in own:
        raise InputError(f"{at} has both script and project; one is enough")
    if "script" in own:
        return _existing_file(_text(own["script"], f"{at}.script"), path, None, f"{at}.script")
    project = _name(own.get("project", name), f"{at}.project")
    found = _find_file(f"projects/{project}/train_net.py", path, None)
    if found is None:
        known = {
            folder.parent.name
            for root in _search_folders(path, None)
            for folder in root.glob("projects/*/train_net.py")
        }
        hint = near(project, known) or (f"; known are {', '.join(sorted(known))}" if known else "")
        raise InputError(f"{at}: there is no project {project!r}, that is, no projects/{project}/train_net.py{hint}")
    return found


def _existing_file(text: str, path: Path, script: Path | None, at: str) -> Path:
    """Finds a file that a study names; raises InputError with the nearest existing name if it is missing."""
    found = _find_file(text, path, script)
    if found is None:
        folders = [(root / text).parent for root in _search_folders(path, script)]
        names = {file.name for folder in folders if os.path.isdir(folder) for file in folder.iterdir()}
        raise InputError(f"{at}: there is no file {text}{near(Path(text).name, names)}")
    return found


def _find_file(text: str, path: Path, script: Path | None) -> Path | None:
    """The first file of this name in `_search_folders`; None if no folder has it."""
    found = (root / text for root in _search_folders(path, script))
    return next((file.resolve() for file in found if os.path.isfile(file)), None)


def _search_folders(path: Path, script: Path | None) -> list[Path]:
    """Folders to search, in order: the study's and its parents, the script's, the current one, sirfp's checkout."""
    above = path.resolve().parents
    return [*above[:PARENTS], *([script.parent] if script else []), Path.cwd(), Path(__file__).resolve().parents[2]]


def _criteria(value: Any, at: str) -> tuple[CriterionSpec, ...]:
    """The entries of `criteria`; a plain name selects the registered criterion of this name, without options."""
    from ..criteria import CRITERIA

    found = []
    for i, item in enumerate(_nonempty_list(value, at)):
        here = f"{at}[{i}]"
        node = {"name": item} if isinstance(item, str) else _mapping(item, here)
        _check_keys(node, CRITERION_KEYS, here)
        name = _name(_required(node, "name", here), f"{here}.name")
        criterion = _text(node.get("criterion", name), f"{here}.criterion")
        CRITERIA.find(criterion, here)
        if name in ("dense", CONTROL):
            raise InputError(f"{here}: the name {name} is reserved for runs that do not prune; choose another")
        seeds = _seeds(node["seeds"], f"{here}.seeds") if "seeds" in node else ()
        hooks = tuple(_text(hook, f"{here}.hooks") for hook in _list(node.get("hooks", []), f"{here}.hooks"))
        overrides = _overrides(node.get("overrides", {}), f"{here}.overrides")
        steps = _count(node["steps"], f"{here}.steps", 1) if "steps" in node else None
        found.append(CriterionSpec(name, criterion, hooks, overrides, seeds, steps))
    _check_distinct([variant.name for variant in found], at)
    return tuple(found)


def _overrides(value: Any, at: str) -> dict[str, Any]:
    """{config key: value}. Keys that start with SIRFP are checked here, others by the run."""
    found = {}
    for key, setting in _mapping(value, at).items():
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", str(key)):
            raise InputError(f"{at}: {key!r} is no config key; write it like SOLVER.BASE_LR")
        if key in SET_BY_STUDY:
            raise InputError(f"{at}: {key} is set by the study's {SET_BY_STUDY[key]}")
        if isinstance(setting, Mapping):
            raise InputError(f"{at}: write {key}.{next(iter(setting), 'KEY')} in full, not a block below {key}")
        if key.startswith("SIRFP."):  # other keys may belong to a project; only its script knows them
            check_key(key, setting, at)
        found[key] = setting
    return found


def _check_keys(node: Mapping[str, Any], known: Iterable[str], at: str) -> None:
    """Raises InputError for an unknown key; the message suggests the nearest known key."""
    for key in node:
        if key not in known:
            raise InputError(f"{at} has no key {key!r}{near(key, known) or '; known are ' + ', '.join(known)}")


def _required(node: Mapping[str, Any], key: str, at: str) -> Any:
    if node.get(key) is None:
        raise InputError(f"{at} lacks {key}")
    return node[key]


def _mapping(value: Any, at: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{at} must be a block of KEY: VALUE lines, got {value!r}")
    return value


def _list(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{at} must be a list, got {value!r}; write [{value}]")
    return value


def _nonempty_list(value: Any, at: str) -> list[Any]:
    if not _list(value, at):
        raise InputError(f"{at} is empty")
    return value


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{at} must be a text, got {value!r}")
    return value


def _name(value: Any, at: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value):
        raise InputError(f"{at}: write letters, digits and . _ + -, first a letter or digit; got {value!r}")
    return value


def _flag(value: Any, at: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{at} must be true or false, got {value!r}")
    return value


def _count(value: Any, at: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{at} must be a whole number of at least {least}, got {value!r}")
    return value


def _budget(value: Any, at: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1:
        raise InputError(f"{at}: a budget is a share of FLOPs between 0 and 1, got {value!r}")
    return float(value)


def _seeds(value: Any, at: str) -> tuple[int, ...]:
    seeds = tuple(_count(seed, at, 0) for seed in _nonempty_list(value, at))
    _check_distinct(seeds, at)
    return seeds


def _check_distinct(values: Iterable[Any], at: str) -> None:
    values = list(values)
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{at} has {value} twice")
