"""A study over the fake `train_net.py`, in a folder of its own."""

import pytest
from study_bench import Bench

from sirfp.study import scheduler


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.02)
    return Bench(tmp_path)
