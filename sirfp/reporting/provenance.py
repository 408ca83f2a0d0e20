"""What made a result: versions of sirfp and of the libraries that its runs use, and the commit of a checkout."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

LIBRARIES = {"PyTorch": "torch", "timm": "timm", "Detectron2": "detectron2"}
"""{name on the page: package}."""


def versions() -> str:
    """Returns the versions in one line, e.g. "sirfp 0.1.0, commit 1a2b3c4d5e6f; PyTorch 2.14.1, Python 3.11.4"."""
    commit = checkout_commit(Path(__file__).parents[2])
    package = sys.modules[__name__.partition(".")[0]]  # importing it here would be upward
    ours = f"sirfp {package.__version__}" + (f", commit {commit}" if commit else "")
    others = [f"{name} {version}" for name, package in LIBRARIES.items() if (version := _version(package))]
    return f"{ours}; {', '.join([*others, f'Python {platform.python_version()}'])}"


def checkout_commit(folder: Path) -> str:
    """The commit that is checked out in a folder, "+" after it if files differ; "" if it is no checkout of its own."""
    if not (folder / ".git").exists():
        return ""
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    changed = commit and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if changed else commit


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
