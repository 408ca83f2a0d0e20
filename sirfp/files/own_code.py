"""Imports the user's own code before a command or a run, so that configs can name what the code registers."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path

from ..errors import InputError
from .nearby import nearby


def add_import(parser: argparse.ArgumentParser | argparse._ArgumentGroup, where: str = "") -> None:
    """Adds the option `--import` for the user's own code; the parsed values are in `imports`.

    Args:
        parser: the parser of a command or a script.
        where: the processes that import the code, for the help: "in every process".
    """
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="CODE",
        help=f"your own code to import first{where and f' {where}'}: a .py file, the folder of a package, or a module. "
        "It can register a project, a model, a criterion, a hook or a data set; repeatable",
    )


def import_own(name: str) -> None:
    """Imports a file, a package or a module; does nothing if it was imported before.

    Args:
        name: a .py file, the folder of a package, or the name of a module. A file can import modules of its own
            folder. A module is also found in the current folder.

    Raises:
        InputError: the file or module does not exist, or running it raises an error.
    """
    file = Path(name)
    if name.endswith(".py") and not file.is_file():
        raise InputError(f"--import {name}: there is no such file{nearby(file, ['.py'])}")
    try:
        if file.is_file():
            _run(file)
        elif (file / "__init__.py").is_file():
            _import_package(file.resolve())
        else:
            sys.path.insert(0, str(Path.cwd()))
            importlib.import_module(name)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"--import {name}: there is no such module; the name of a file must end in .py") from None
        raise InputError(f"--import {name}: {_said(error, file)}") from None


def _run(file: Path) -> None:
    file = file.resolve()
    if any(getattr(module, "__file__", None) == str(file) for module in list(sys.modules.values())):
        return
    sys.path.insert(0, str(file.parent))
    module_name = file.stem
    while module_name in sys.modules:  # a library's, or that of a file of the same name in another folder
        module_name = f"own_{module_name}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"--import {file.name}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise


def _import_package(folder: Path) -> None:
    sys.path.insert(0, str(folder.parent))
    module = importlib.import_module(folder.name)
    if Path(module.__file__ or "").parent.resolve() != folder:
        raise InputError(f"--import {folder}: another {folder.name} was imported before, from {module.__file__}")


def _said(error: BaseException, file: Path) -> str:
    """Returns the text of an error, with the line of the user's file that raised it."""
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    else:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == file.name]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"
