"""Miniatures of public data sets, made and prepared once."""

import shutil

import pytest
from miniature_sets import MAKERS

from sirfp.data.descriptions import DATA_SETS
from sirfp.data.preparation import prepare


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """All miniatures, prepared; to be copied."""
    root = tmp_path_factory.mktemp("datasets")
    for name, make in MAKERS.items():
        prepare(DATA_SETS[name], make(root), workers=1)
    return root


@pytest.fixture
def tree(trees, tmp_path):
    """A function from a data set's name to the folder of a copy of its own, in the place where it belongs."""

    def copied(name):
        folder = DATA_SETS[name].folder
        shutil.copytree(trees / folder, tmp_path / folder)
        return tmp_path / folder

    return copied
