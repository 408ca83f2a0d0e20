"""What a user's own code registers, and how a test ends it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from scripts import ROOT

from sirfp.cli import COMMANDS
from sirfp.config import projects
from sirfp.criteria import CRITERIA
from sirfp.data.data_set import DATA_SETS
from sirfp.hooks import HOOKS
from sirfp.tracing import RULES

REGISTRIES = [r._obj_map for r in (CRITERIA, HOOKS, RULES, META_ARCH_REGISTRY, BACKBONE_REGISTRY)] + [projects.PROJECTS]
"""Of classes and functions by name."""


def forget(unwanted: Callable[[Any], bool]) -> None:
    """Removes classes and functions from all registries but that of projects' keys, which a script may fill twice."""
    for registry in REGISTRIES[:-1]:
        for name in [name for name, kind in registry.items() if unwanted(kind)]:
            del registry[name]


@contextmanager
def temporary(folder: Path) -> Iterator[None]:
    """Removes, when left, what code has registered meanwhile, and the modules of a folder.

    Classes of sirfp and its projects stay: their modules stay imported and would not register them again.
    """
    names = [set(registry) for registry in REGISTRIES]
    modules, path = set(sys.modules), [*sys.path]
    data_sets, always, commands = dict(DATA_SETS), [*projects.ALWAYS], dict(COMMANDS)
    try:
        yield
    finally:
        for registry, before in zip(REGISTRIES, names, strict=True):
            for name in set(registry) - before:
                if not _of_the_checkout(registry[name]):
                    del registry[name]
        for table, content in ((DATA_SETS, data_sets), (COMMANDS, commands)):
            table.clear()
            table.update(content)
        projects.ALWAYS[:] = always
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
                del sys.modules[name]


def _of_the_checkout(kind: Any) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return bool(file) and Path(file).resolve().is_relative_to(ROOT)
