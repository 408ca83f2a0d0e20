"""What a study's YAML file may say, checked key by key; every mistake is one line that names its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, near
from ..files.yaml_files import read_yaml

SHARED = (
    "iterations", "steps", "criteria", "budgets", "seeds", "control", "overrides", "dense_overrides",
    "pruning_overrides",
)  # fmt: skip
"""Keys that stand for every task at the top, and may stand again in a task."""
CONTROL = "unpruned"
"""The name of the runs that train a dense network on for as long as a pruning does, where `control` asks for them."""
OF_TASK = ("project", "script", "metric", "models", *SHARED)
OF_CRITERION = ("name", "criterion", "hooks", "overrides", "seeds", "steps")
ITERATIONS = ("dense", "accumulate", "recover", "finetune")
DECIDED = {
    "SEED": "seeds", "SIRFP.SEED": "seeds", "SIRFP.CRITERION": "criteria", "SIRFP.KEEP_FLOPS": "budgets",
    "SIRFP.STEPS": "steps", "SIRFP.START_ITER": "iterations", "SIRFP.ACCUMULATE_ITERS": "iterations",
    "SIRFP.RECOVER_ITERS": "iterations", "SOLVER.MAX_ITER": "iterations", "OUTPUT_DIR": "folder",
    "MODEL.WEIGHTS": "models",
}  # fmt: skip
"""Config keys that the study sets itself, and by which of its own."""


@dataclass(frozen=True)
class Variant:
    """A criterion with what belongs to it: hooks (after Accumulate), overrides, seeds and steps (none: the task's)."""

    name: str
    criterion: str
    hooks: tuple[str, ...] = ()
    overrides: tuple[tuple[str, Any], ...] | Mapping[str, Any] = ()
    seeds: tuple[int, ...] = ()
    steps: int | None = None


@dataclass(frozen=True)
class Spec:
    """A task of a study, every key filled in."""

    name: str
    script: Path
    metric: str
    models: Mapping[str, Path]
    iterations: Mapping[str, int]
    steps: int
    criteria: tuple[Variant, ...]
    budgets: tuple[float, ...]
    seeds: tuple[int, ...]
    control: bool
    overrides: Mapping[str, Any]
    dense_overrides: Mapping[str, Any]
    pruning_overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Described:
    """A whole file."""

    folder: Path
    tasks: tuple[Spec, ...]


def read(path: Path) -> tuple[Described, str]:
    """Reads and checks a study's file.

    Returns:
        What it says, and its text.

    Raises:
        InputError: it is missing, no YAML, or says something that cannot be.
    """
    if not path.is_file():
        known = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise InputError(f"there is no study {path}{near(path.name, known)}")
    content, text = read_yaml(path, "study")
    try:
        top = _mapping(content, "the study")
        _known(top, ("folder", "tasks", *SHARED), "the study")
        tasks = _mapping(_needed(top, "tasks", "the study"), "tasks")
        if not tasks:
            raise InputError("tasks names no task")
        folder = _text(top.get("folder", f"output/studies/{path.stem}"), "folder")
        specs = tuple(_task(_name(name, "tasks"), node, top, path) for name, node in tasks.items())
        return Described(Path(folder), specs), text
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _task(name: str, node: Any, top: Mapping[str, Any], path: Path) -> Spec:
    at = f"tasks.{name}"
    own = _mapping(node, at)
    _known(own, OF_TASK, at)
    given = {key: own.get(key, top.get(key)) for key in SHARED}
    for key in ("iterations", "overrides", "dense_overrides", "pruning_overrides"):  # a task's own win one by one
        given[key] = {**_mapping(top.get(key) or {}, key), **_mapping(own.get(key) or {}, f"{at}.{key}")}
    for key in ("criteria", "budgets"):
        if not given[key]:
            raise InputError(f"{at} lacks {key}, and so does the study")
    script = _script(own, name, path, at)
    models = {
        _name(model, f"{at}.models"): _file(_text(file, f"{at}.models.{model}"), path, script, f"{at}.models.{model}")
        for model, file in _mapping(_needed(own, "models", at), f"{at}.models").items()
    }
    if not models:
        raise InputError(f"{at}.models names no model")
    times = given["iterations"]
    _known(times, ITERATIONS, f"{at}.iterations")
    times = {"recover": 0, **times}
    iterations = {
        key: _count(_needed(times, key, f"{at}.iterations"), f"{at}.iterations.{key}", int(key != "recover"))
        for key in ITERATIONS
    }
    overrides = {
        key: _overrides(given[key], f"{at}.{key}") for key in ("overrides", "dense_overrides", "pruning_overrides")
    }
    return Spec(
        name,
        script,
        _text(_needed(own, "metric", at), f"{at}.metric"),
        models,
        iterations,
        _count(given["steps"] if given["steps"] is not None else 1, f"{at}.steps", 1),
        _criteria(given["criteria"], f"{at}.criteria"),
        tuple(_budget(value, f"{at}.budgets") for value in _several(given["budgets"], f"{at}.budgets")),
        _seeds([0] if given["seeds"] is None else given["seeds"], f"{at}.seeds"),
        _flag(given["control"] or False, f"{at}.control"),
        **overrides,
    )


def _script(own: Mapping[str, Any], name: str, path: Path, at: str) -> Path:
    if "script" in own and "project" in own:
        raise InputError(f"{at} has both script and project; one is enough")
    if "script" in own:
        return _file(_text(own["script"], f"{at}.script"), path, None, f"{at}.script")
    project = _name(own.get("project", name), f"{at}.project")
    found = _first(f"projects/{project}/train_net.py", path, None)
    if found is None:
        known = {folder.parent.name for root in _roots(path, None) for folder in root.glob("projects/*/train_net.py")}
        hint = near(project, known) or (f"; known are {', '.join(sorted(known))}" if known else "")
        raise InputError(f"{at}: there is no project {project!r}, that is, no projects/{project}/train_net.py{hint}")
    return found


def _file(text: str, path: Path, script: Path | None, at: str) -> Path:
    found = _first(text, path, script)
    if found is None:
        folders = [(root / text).parent for root in _roots(path, script)]
        names = {file.name for folder in folders if os.path.isdir(folder) for file in folder.iterdir()}
        raise InputError(f"{at}: there is no file {text}{near(Path(text).name, names)}")
    return found


def _first(text: str, path: Path, script: Path | None) -> Path | None:
    found = (root / text for root in _roots(path, script))
    return next((file.resolve() for file in found if os.path.isfile(file)), None)


def _roots(path: Path, script: Path | None) -> list[Path]:
    """Where a file named in the study may lie: beside it or above it, beside the script, here, in the checkout."""
    above = path.resolve().parents
    return [*above[:4], *([script.parent] if script else []), Path.cwd(), Path(__file__).resolve().parents[2]]


def _criteria(value: Any, at: str) -> tuple[Variant, ...]:
    from ..criteria import CRITERIA

    found = []
    for i, item in enumerate(_several(value, at)):
        here = f"{at}[{i}]"
        node = {"name": item} if isinstance(item, str) else _mapping(item, here)
        _known(node, OF_CRITERION, here)
        name = _name(_needed(node, "name", here), f"{here}.name")
        criterion = _text(node.get("criterion", name), f"{here}.criterion")
        if criterion not in CRITERIA:
            listed = f"known are {', '.join(sorted(CRITERIA))}{near(criterion, CRITERIA)}"
            raise InputError(f"{here}: there is no criterion {criterion!r}; {listed}")
        if name in ("dense", CONTROL):
            raise InputError(f"{here}: the name {name} is that of runs which do not prune")
        seeds = _seeds(node["seeds"], f"{here}.seeds") if "seeds" in node else ()
        hooks = tuple(_text(hook, f"{here}.hooks") for hook in _list(node.get("hooks", []), f"{here}.hooks"))
        overrides = _overrides(node.get("overrides", {}), f"{here}.overrides")
        steps = _count(node["steps"], f"{here}.steps", 1) if "steps" in node else None
        found.append(Variant(name, criterion, hooks, overrides, seeds, steps))
    _distinct([variant.name for variant in found], at)
    return tuple(found)


def _overrides(value: Any, at: str) -> dict[str, Any]:
    from ..config.reading import load_config

    found = {}
    for key, setting in _mapping(value, at).items():
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", str(key)):
            raise InputError(f"{at}: {key!r} is no config key such as SOLVER.BASE_LR")
        if key in DECIDED:
            raise InputError(f"{at}: {key} is set by the study's {DECIDED[key]}")
        if isinstance(setting, Mapping):
            raise InputError(f"{at}: write {key}.{next(iter(setting), 'KEY')} in full, not a block below {key}")
        if key.startswith("SIRFP."):  # sirfp's own keys are known here; a project's only to its script
            try:
                load_config("", [key, setting if isinstance(setting, str) else repr(setting)])
            except InputError as error:
                raise InputError(f"{at}: {error}") from None
        found[key] = setting
    return found


def _known(node: Mapping[str, Any], known: Iterable[str], at: str) -> None:
    for key in node:
        if key not in known:
            raise InputError(f"{at} has no key {key!r}{near(key, known) or '; known are ' + ', '.join(known)}")


def _needed(node: Mapping[str, Any], key: str, at: str) -> Any:
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


def _several(value: Any, at: str) -> list[Any]:
    if not _list(value, at):
        raise InputError(f"{at} is empty")
    return value


def _text(value: Any, at: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{at} must be a text, got {value!r}")
    return value


def _name(value: Any, at: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value):
        raise InputError(f"{at}: a name is of letters, digits, dots and dashes, got {value!r}")
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
    seeds = tuple(_count(seed, at, 0) for seed in _several(value, at))
    _distinct(seeds, at)
    return seeds


def _distinct(values: Iterable[Any], at: str) -> None:
    values = list(values)
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{at} has {value} twice")
