"""Names of metrics are checked before a run."""

from __future__ import annotations

import pytest

from sirfp.config import load_config
from sirfp.config.metrics import check_metrics
from sirfp.errors import InputError


@pytest.mark.parametrize("key", ["TEST.BEST_METRIC", "SIRFP.METRICS"])
@pytest.mark.parametrize(
    ("project", "metric"),
    [("segmentation", "sem_seg/mIoU"), ("detection", "bbox/AP"), ("classification", "classification/top1")],
)
def test_metrics_of_several_test_sets_begin_with_the_set(key, project, metric):
    def check(name, *sets):
        value = name if key == "TEST.BEST_METRIC" else str([name])
        check_metrics(load_config("", ["DATASETS.TEST", str(sets), key, value]), project)

    check(metric, "a")
    check(f"b/{metric}", "a", "b")
    check("line/score", "a")  # of an evaluator of the user's
    check("b/line/score", "a", "b")
    for name, sets in ((f"b/{metric}", ["b"]), (f"c/{metric}", ["a", "b"]), ("score", ["a"])):
        with pytest.raises(InputError, match="there is no metric"):
            check(name, *sets)
