"""Config keys that code outside sirfp adds: those of a project (a task with its trainer), of a hook, of a criterion.

    from sirfp.config import register_config

    @register_config("depth")
    def add_depth_config(cfg):
        cfg.MODEL.DEPTH = CfgNode()
        cfg.MODEL.DEPTH.BINS = 64

A config of the project says so by `PROJECT: depth`, in itself or in a file of its `_BASE_`. A config names no code:
the project's is imported by its own `train_net.py`, or by `--import`. Only the projects of this checkout are found
by their name.
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
"""What adds the keys of a project, by the project's name."""
ALWAYS: list[AddConfig] = []
"""What adds keys to every config."""
CHECKOUT = Path(__file__).resolve().parents[2] / "projects"
"""sirfp's own projects; not there where sirfp is installed without them."""


def register_config(project: str = "") -> Callable[[AddConfig], AddConfig]:
    """Registers a function that adds keys to a config before a file is read over it.

    Args:
        project: the name of the project that the keys belong to: configs with `PROJECT: <name>` have them. "": every
            config has them, as suits a hook or a criterion with keys of its own.

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
    """Adds a project's keys to a config that has sirfp's, and those of every config; calls each function once.

    Args:
        cfg: the config.
        project: its PROJECT; "" where it is of none.
        given: a further function that adds keys.

    Raises:
        InputError: the project is not known, or a function raises an error.
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
    """The project that a function adds the keys of; "" for one that is not registered."""
    return next((name for name, known in PROJECTS.items() if known is function), "")


def project_in(contents: Iterable[Mapping[str, Any]], opts: Sequence[str]) -> str:
    """The PROJECT that configs and options name; the last of them that names one wins.

    Args:
        contents: what files say with their bases, each laid over those before it.
        opts: KEY, VALUE, KEY, VALUE, ...

    Raises:
        InputError: it is no name.
    """
    said = [content.get("PROJECT") for content in contents]
    said += [value for key, value in zip(opts[::2], opts[1::2], strict=False) if key == "PROJECT"]
    project = next((name for name in reversed(said) if name), "")
    if project and not (isinstance(project, str) and re.fullmatch(r"\w+", project)):
        raise InputError(f"PROJECT must be a name of letters, digits and _, got {project!r:.80}")
    return project


def project_by_keys(contents: Iterable[Mapping[str, Any]], cfg: CfgNode, given: AddConfig | None = None) -> str:
    """The project of this checkout that configs without PROJECT are of, by their keys.

    Runs wrote such configs before PROJECT existed.

    Args:
        contents: what files say with their bases.
        cfg: a config with sirfp's own keys.
        given: a further function that adds keys.

    Returns:
        The name of the first project that knows every key; "" where none is needed or none knows them.
    """
    contents = list(contents)
    for project in ("", *sorted(file.parent.name for file in CHECKOUT.glob("*/train_net.py"))):
        full = cfg.clone()
        with suppress(InputError):  # a project that adds no keys
            add_keys(full, project, given)
            if all(_has_keys(full, content) for content in contents):
                return project
    return ""


def _has_keys(node: Any, content: Mapping[str, Any]) -> bool:
    """Whether every key of some content has its place in a config."""
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
            f"PROJECT: the code of project {project!r} is not imported: give --import FILE, such as its train_net.py; "
            f"known are {', '.join(known)}{near(project, known)}"
        )


def _same(one: AddConfig, other: AddConfig) -> bool:
    """Whether two functions come from the same lines of a file, which was run twice."""
    return _place(one) == _place(other)


def _place(function: AddConfig) -> tuple[Any, Any]:
    code = getattr(function, "__code__", None)
    return getattr(function, "__qualname__", function), getattr(code, "co_filename", function)
