"""Reads a study's YAML file and checks it key by key; each error is one line that names the key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, near
from ..files.nearby import nearby
from ..files.own_code import import_own
from ..files.yaml_files import read_yaml
from .overrides import check_options, read_overrides
from .rows import RowSpec, read_rows
from .values import (
    as_block,
    as_budget,
    as_count,
    as_flag,
    as_list,
    as_name,
    as_nonempty,
    as_seeds,
    as_text,
    check_keys,
    required,
)

SHARED_KEYS = (
    "iterations", "steps", "criteria", "variants", "budgets", "seeds", "control", "overrides", "dense_overrides",
    "pruning_overrides",
)  # fmt: skip
"""Keys that apply to all tasks at the top level of the file; a task may repeat them with its own values."""
TASK_KEYS = ("project", "script", "metric", "models", *SHARED_KEYS)
ITERATION_KEYS = ("dense", "accumulate", "recover", "finetune")
PARENTS = 4
"""Number of folders that are searched, starting at the study's file and going up."""


@dataclass(frozen=True)
class TaskSpec:
    """A task of a study, with defaults and top-level values filled in; docs/study.md describes the keys."""

    name: str
    script: Path
    metric: str
    models: Mapping[str, Path]
    iterations: Mapping[str, int]
    steps: int
    rows: tuple[RowSpec, ...]
    budgets: tuple[float, ...]
    control: bool
    overrides: Mapping[str, Any]
    dense_overrides: Mapping[str, Any]
    pruning_overrides: Mapping[str, Any]


@dataclass(frozen=True)
class StudyFile:
    """The content of a study's file.

    Attributes:
        folder: where runs and the report are written.
        tasks: the tasks.
        imports: the user's own code that every run imports first: absolute paths, or names of modules.
    """

    folder: Path
    tasks: tuple[TaskSpec, ...]
    imports: tuple[str, ...] = ()


def read_study(path: Path) -> tuple[StudyFile, str]:
    """Reads and checks a study's file.

    Returns:
        The checked content and the text of the file.

    Raises:
        InputError: the file is missing or is no YAML, or a key or value is not valid.
    """
    if not path.is_file():
        raise InputError(f"there is no study {path}{nearby(path, ['.yaml'])}")
    content, text = read_yaml(path, "study")
    try:
        top = as_block(content, "the study")
        check_keys(top, ("folder", "imports", "tasks", *SHARED_KEYS), "the study")
        imports = tuple(_own_code(name, path) for name in as_list(top.get("imports") or [], "imports"))
        for code in imports:  # before the criteria are checked, which it may register
            import_own(code)
        tasks = as_block(required(top, "tasks", "the study"), "tasks")
        if not tasks:
            raise InputError("tasks names no task")
        folder = as_text(top.get("folder", f"output/studies/{path.stem}"), "folder")
        specs = tuple(_task_spec(as_name(name, "tasks"), node, top, path) for name, node in tasks.items())
        return StudyFile(Path(folder), specs, imports), text
    except InputError as error:
        raise InputError(f"{path}: {str(error).replace('--import ', 'imports: ')}") from None


def _own_code(name: Any, path: Path) -> str:
    """The absolute path of a file or package named in `imports`, looked up beside the study; or a module's name."""
    code = as_text(name, "imports")
    for place in (path.parent / code, Path(code)):
        if place.exists():
            return str(place.resolve())
    return code


def _task_spec(name: str, node: Any, top: Mapping[str, Any], path: Path) -> TaskSpec:
    """Checks one task.

    Args:
        name: name of the task.
        node: block of the task in the file.
        top: content of the whole file; its values are defaults for keys that the task lacks.
        path: the file.
    """
    from ..config.metrics import check_metric  # needs Detectron2

    at = f"tasks.{name}"
    own = as_block(node, at)
    check_keys(own, TASK_KEYS, at)
    values = {key: own.get(key, top.get(key)) for key in SHARED_KEYS}
    for key in ("iterations", "variants", "overrides", "dense_overrides", "pruning_overrides"):  # merged entry by entry
        values[key] = {**as_block(top.get(key) or {}, key), **as_block(own.get(key) or {}, f"{at}.{key}")}
    for key in ("criteria", "budgets"):
        if not values[key]:
            raise InputError(f"{at} lacks {key}, and so does the study")
    script = _script(own, name, path, at)
    metric = as_text(required(own, "metric", at), f"{at}.metric")
    check_metric(metric, "" if "script" in own else own.get("project", name), f"{at}.metric")
    overrides = read_overrides(values["overrides"], f"{at}.overrides", initial=True)
    pruning_overrides = read_overrides(values["pruning_overrides"], f"{at}.pruning_overrides")
    seeds = as_seeds([0] if values["seeds"] is None else values["seeds"], f"{at}.seeds")
    rows = read_rows(values["criteria"], values["variants"], seeds, at)
    for row in rows:
        if not row.scratch:
            settings = overrides | pruning_overrides | dict(row.overrides)
            check_options(row.criterion, settings, f"{at}.criteria, row {row.name}")
    return TaskSpec(
        name,
        script,
        models=_models(own, path, script, at),
        iterations=_iterations(values["iterations"], f"{at}.iterations"),
        metric=metric,
        steps=as_count(values["steps"] if values["steps"] is not None else 1, f"{at}.steps", 1),
        rows=rows,
        budgets=tuple(as_budget(value, f"{at}.budgets") for value in as_nonempty(values["budgets"], f"{at}.budgets")),
        control=as_flag(values["control"] or False, f"{at}.control"),
        overrides=overrides,
        dense_overrides=read_overrides(values["dense_overrides"], f"{at}.dense_overrides", initial=True),
        pruning_overrides=pruning_overrides,
    )


def _models(own: Mapping[str, Any], path: Path, script: Path, at: str) -> dict[str, Path]:
    """{model: its config file} of a task."""
    models = {}
    for model, file in as_block(required(own, "models", at), f"{at}.models").items():
        place = f"{at}.models.{model}"
        models[as_name(model, f"{at}.models")] = _existing_file(as_text(file, place), path, script, place)
    if not models:
        raise InputError(f"{at}.models names no model")
    return models


def _iterations(given: Mapping[str, Any], at: str) -> dict[str, int]:
    """{phase: number of iterations}. Only `recover` may be 0 or missing: a single cut needs no recovery."""
    check_keys(given, ITERATION_KEYS, at)
    given = {"recover": 0, **given}
    return {key: as_count(required(given, key, at), f"{at}.{key}", int(key != "recover")) for key in ITERATION_KEYS}


def _script(own: Mapping[str, Any], name: str, path: Path, at: str) -> Path:
    """The `train_net.py` of a task: the task's `script`, else the script of its `project`.

    Without either key, the project has the task's name.
    """
    if "script" in own and "project" in own:
        raise InputError(f"{at} has both script and project; one is enough")
    if "script" in own:
        return _existing_file(as_text(own["script"], f"{at}.script"), path, None, f"{at}.script")
    project = as_name(own.get("project", name), f"{at}.project")
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
