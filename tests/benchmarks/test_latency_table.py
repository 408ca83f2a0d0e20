"""The benchmark of the table of layers' times."""

import numpy as np
import pytest
from scripts import loaded


def test_the_spread_is_that_of_the_tables_around_their_mean():
    tables = np.array([[[3.0, 4.0]], [[3.0, 4.0]]])
    with loaded("benchmarks/latency_table.py") as module:
        assert module.spread(tables) == 0
        assert module.spread(tables * [[[1.1]], [[0.9]]]) == pytest.approx(0.1)
