"""The layout of `sirfp/`: which modules lie loose in it, that packages import downward only, and that all import."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import sirfp

ROOT = Path(__file__).resolve().parents[1]
LOOSE = {"__init__", "errors", "processes", "prune", "pruner", "sensitivity", "session", "engine", "cli"}
"""Public doors and the ground; every other module lies in the package of its step."""


def test_only_doors_and_the_ground_lie_loose():
    assert {file.stem for file in (ROOT / "sirfp").glob("*.py")} == LOOSE


def test_packages_import_downward_only():
    """The order stands in pyproject.toml, `[tool.importlinter]`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 kept, 0 broken" in done.stdout


def test_every_module_imports():
    names = [module.name for module in pkgutil.walk_packages(sirfp.__path__, "sirfp.")]
    assert len(names) > 100
    for name in names:
        try:
            importlib.import_module(name)
        except sirfp.InputError as error:  # an adapter to a library that is not installed
            assert name.startswith("sirfp.adapters.") and "pip install 'sirfp[adapters]'" in str(error)
