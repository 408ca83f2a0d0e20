"""A study over the fake `train_net.py`, in a folder of its own."""

import pytest
from study_bench import Bench

from sirfp.study import work


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "PAUSE", 0.02)
    return Bench(tmp_path)
