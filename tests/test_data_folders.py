"""Tests run in a folder with data in `datasets/`, as Detectron2 has it by default."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest
from data_folders import hide_folder_of_data


@pytest.mark.parametrize(("files", "found"), [(["camvid/a.png"], False), (["__init__.py"], True)])
def test_a_folder_of_data_is_no_library(files, found, tmp_path, monkeypatch):
    for file in files:
        (tmp_path / "datasets" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "datasets" / file).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "modules", {name: module for name, module in sys.modules.items() if name != "datasets"})
    importlib.invalidate_caches()
    assert importlib.util.find_spec("datasets") is not None
    hide_folder_of_data()
    assert (importlib.util.find_spec("datasets") is not None) == found
