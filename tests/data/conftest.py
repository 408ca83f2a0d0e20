"""Miniatures of public data sets, made and prepared once."""

import shutil

import pytest
from miniature_sets import MAKERS

from sirfp.data.descriptions import DATA_SETS
from sirfp.data.preparation import prepare


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """All miniatures, prepared; tests work on copies."""
    root = tmp_path_factory.mktemp("datasets")
    for name, make in MAKERS.items():
        prepare(DATA_SETS[name], make(root), workers=1)
    return root


@pytest.fixture
def tree(trees, tmp_path):
    """A function that copies a data set's miniature to its place and returns the folder."""

    def copied(name):
        folder = DATA_SETS[name].folder
        shutil.copytree(trees / folder, tmp_path / folder)
        return tmp_path / folder

    return copied
