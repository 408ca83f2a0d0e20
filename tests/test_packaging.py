"""An installed sirfp has every module that the checkout has."""

from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[1]


def test_every_folder_of_code_is_a_package_that_is_installed():
    installed = set(find_packages(str(ROOT), include=["sirfp", "sirfp.*"]))
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "sirfp").rglob("*.py")}
    assert folders == installed
