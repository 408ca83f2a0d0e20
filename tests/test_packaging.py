"""An installed sirfp has every module and file that the checkout has, from its source package too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

import sirfp

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """The output of a command, which must succeed; it gets this process's environment and the given variables."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=os.environ | more, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def files_of(folder: Path) -> set[str]:
    """The files of the package sirfp in a folder, without compiled ones."""
    found = (path for path in (folder / "sirfp").rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path.relative_to(folder).as_posix() for path in found}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The folder that a source package unpacks to; made from a copy, as building leaves files beside the sources."""
    copy, place = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "sirfp", copy / "sirfp", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-c", f"from setuptools.build_meta import build_sdist as b; b({str(place)!r})", cwd=copy)
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(place, filter="data")
    return place / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(unpacked) -> Path:
    """A wheel, built from the source package alone, without a network."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", unpacked.parent)
    run(sys.executable, "-m", "pip", "wheel", *options, unpacked, cwd=unpacked.parent)
    (built,) = unpacked.parent.glob("*.whl")
    return built


def test_every_folder_of_code_is_a_package_that_is_installed():
    installed = set(find_packages(str(ROOT), include=["sirfp", "sirfp.*"]))
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "sirfp").rglob("*.py")}
    assert folders == installed


def test_the_source_package_has_every_file_and_what_builds_it(unpacked):
    assert files_of(unpacked) == files_of(ROOT)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        assert (unpacked / name).is_file()


def test_the_wheel_has_every_file_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as packed:
        inside = {name for name in packed.namelist() if ".dist-info/" not in name}
    assert inside == files_of(ROOT) and {"sirfp/py.typed", "sirfp/study/page.css", "sirfp/study/page.js"} <= inside


def test_the_wheel_installs_and_runs_elsewhere(wheel, tmp_path):
    place, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ("--no-deps", "--no-index", "--no-compile", "--quiet", "--target", place)
    run(sys.executable, "-m", "pip", "install", *options, wheel, cwd=elsewhere)
    code = "import sirfp, sys; print(sirfp.__version__, sirfp.__file__, 'torch._dynamo' in sys.modules)"
    *told, compiler = run(sys.executable, "-c", code, cwd=elsewhere, PYTHONPATH=str(place)).split()
    assert told == [sirfp.__version__, str(place / "sirfp/__init__.py")]
    assert compiler == "False", "an import loads PyTorch's compiler, which takes a second"
    assert "verify" in run(place / "bin/sirfp", "--help", cwd=elsewhere, PYTHONPATH=str(place))


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format demands
    assert citation["version"] == sirfp.__version__
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors"} <= set(paper)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert f"{{{paper['title']}}}" in readme and f"{{{authors}}}" in readme and paper["url"] in readme
    assert f"## {sirfp.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
