"""Registers config keys that code outside sirfp adds: keys of a project (a task with its trainer), hook or criterion.

    from sirfp.config import register_config

    @register_config("depth")
    def add_depth_config(cfg):
        cfg.MODEL.DEPTH = CfgNode()
        cfg.MODEL.DEPTH.BINS = 64

A config of this project contains `PROJECT: depth`, in its own file or in a base file (`_BASE_`). A config cannot name
code to import: the project's `train_net.py` or the option `--import` imports the project's code. Only the projects of
this checkout are found by their name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY

from ..errors import InputError, near
from ..files.own_code import import_own

AddConfig = Callable[[CfgNode], None]
PROJECTS: dict[str, AddConfig] = {}
"""{name of a project: the function that adds its keys}."""
ALWAYS: list[AddConfig] = []
"""Functions that add keys to every config."""
CHECKOUT = Path(__file__).resolve().parents[2] / "projects"
"""Folder of sirfp's own projects; does not exist if sirfp is installed without them."""


def register_config(project: str = "") -> Callable[[AddConfig], AddConfig]:
    """Registers a function that adds keys with their defaults to a config, before any config file is read.

    Args:
        project: the name of a project: the keys are added to configs with `PROJECT: <name>`. "": the keys are added to
            every config, for hooks or criteria with their own keys.

    Raises:
        ValueError: another function is registered for the project.
    """

    def add(function: AddConfig) -> AddConfig:
        if not project:
            ALWAYS[:] = [known for known in ALWAYS if not _same(known, function)]
            ALWAYS.append(function)
            return function
        known = PROJECTS.get(project)
        if known is not None and not _same(known, function):
            raise ValueError(f"project {project!r} is registered already, by {known.__module__}.{known.__qualname__}")
        PROJECTS[project] = function
        return function

    return add


def add_keys(cfg: CfgNode, project: str, given: AddConfig | None = None) -> None:
    """Adds the keys of a project and the keys of every config (`ALWAYS`); calls each function once.

    Args:
        cfg: a config with sirfp's keys; changed in place.
        project: the config's PROJECT; "" if it belongs to no project.
        given: a further function that adds keys, or None.

    Raises:
        InputError: the project is unknown, or a function raises an error.
    """
    found = [given] if given is not None else []
    if project and project not in PROJECTS:
        _import_project(project)
    found += [PROJECTS[project]] if project else []
    for add in dict.fromkeys([*found, *ALWAYS]):
        try:
            add(cfg)
        except Exception as error:  # a user's code may raise anything
            name = getattr(add, "__qualname__", repr(add))
            raise InputError(f"{name}, which adds config keys, raised {type(error).__name__}: {error}") from error


def name_of(function: AddConfig | None) -> str:
    """Returns the project for which a function is registered; "" if it is not registered."""
    return next((name for name, known in PROJECTS.items() if known is function), "")


def project_in(contents: Iterable[Mapping[str, Any]], opts: Sequence[str]) -> str:
    """Returns the PROJECT of config files and options; "" if none of them sets it.

    Args:
        contents: the contents of the files with their bases; each later file overrides keys of the earlier ones.
        opts: KEY, VALUE, KEY, VALUE, ...; they override the files.

    Raises:
        InputError: PROJECT is not a valid name.
    """
    said = [content.get("PROJECT") for content in contents]
    said += [value for key, value in zip(opts[::2], opts[1::2], strict=False) if key == "PROJECT"]
    project = next((name for name in reversed(said) if name), "")
    if project and not (isinstance(project, str) and re.fullmatch(r"\w+", project)):
        raise InputError(f"PROJECT must be a name of letters, digits and _, got {project!r:.80}")
    return project


def project_by_keys(contents: Iterable[Mapping[str, Any]], cfg: CfgNode, given: AddConfig | None = None) -> str:
    """Finds the project of a run's `config.yaml` without PROJECT by its keys, among the projects of this checkout.

    Runs wrote such files, which have every key, before the key PROJECT existed. For other files no project is imported.

    Args:
        contents: the contents of the files with their bases.
        cfg: a config with sirfp's own keys.
        given: a further function that adds keys, or None.

    Returns:
        The name of the first project that has all keys; "" if no project is needed or no project has all keys.
    """
    contents = list(contents)
    if not any(set(cfg) - {"PROJECT"} <= set(content) for content in contents):
        return ""
    for project in ("", *sorted(file.parent.name for file in CHECKOUT.glob("*/train_net.py"))):
        full = cfg.clone()
        with suppress(InputError):  # raised for a project that adds no keys
            add_keys(full, project, given)
            if all(_has_keys(full, content) for content in contents):
                return project
    return ""


def _has_keys(node: Any, content: Mapping[str, Any]) -> bool:
    """Returns True if every key of a file's content exists in a config."""
    if not isinstance(node, CfgNode) or node.is_new_allowed():
        return True
    return all(
        key == BASE_KEY or key in node and (not isinstance(value, Mapping) or _has_keys(node[key], value))
        for key, value in content.items()
    )


def _import_project(project: str) -> None:
    package = CHECKOUT / project / project
    if (package / "__init__.py").is_file():
        import_own(str(package))
    if project not in PROJECTS:
        known = sorted({*PROJECTS, *(file.parent.name for file in CHECKOUT.glob("*/train_net.py"))})
        raise InputError(
            f"PROJECT: the code of project {project!r} is not imported; use --import FILE, e.g. with its train_net.py; "
            f"known projects: {', '.join(known)}{near(project, known)}"
        )


def _same(one: AddConfig, other: AddConfig) -> bool:
    """Returns True if two functions are the same function of a file that was run twice."""
    return _place(one) == _place(other)


def _place(function: AddConfig) -> tuple[Any, Any]:
    code = getattr(function, "__code__", None)
    return getattr(function, "__qualname__", function), getattr(code, "co_filename", function)
