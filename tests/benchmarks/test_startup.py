"""sirfp's part of a start: nested phases count once, and time outside all phases counts as sirfp's."""

import time

import pytest
from scripts import loaded


@pytest.fixture(scope="module")
def script():
    with loaded("benchmarks/startup.py") as module:
        yield module


def test_phases_within_phases_count_once(script):
    class Work:
        def inner(self):
            time.sleep(0.02)

        def outer(self):
            time.sleep(0.01)
            self.inner()

    work, watch = Work(), script.Stopwatch()
    watch.watch(work, "inner", "inside")
    watch.watch(work, "outer", "outside")
    start = time.perf_counter()
    work.outer()
    assert watch.phases["inside"] >= 0.02 and watch.phases["outside"] >= 0.01
    assert sum(watch.phases.values()) <= time.perf_counter() - start


def test_what_is_not_of_others_is_ours(script):
    phases = {"network": 1.0, "sirfp: PruneSteps": 0.5}
    found = script.summary([{"all": 6.0, "imports": 4.0, "phases": phases}], imports_ours=0.3)
    assert found["ours_s"] == pytest.approx(6.0 - (4.0 - 0.3) - 1.0)
