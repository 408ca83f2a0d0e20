"""A part of the table of Detectron2's models: one config of each of three families, and models without a config."""

from pathlib import Path

import pytest
from scripts import loaded


@pytest.fixture(scope="module")
def benchmark():
    with loaded("benchmarks/prunability_detectron2.py") as module:
        module.SIZE = (64, 64)
        yield module


@pytest.mark.parametrize(
    "config",
    [
        "COCO-Detection/rpn_R_50_C4_1x.yaml",
        pytest.param("COCO-Detection/fcos_R_50_FPN_1x.py", marks=pytest.mark.slow),
        "Misc/semantic_R_50_FPN_1x.yaml",
        pytest.param("ViTDet, windows and relative positions", marks=pytest.mark.slow),
        pytest.param("PointRend, instances", marks=pytest.mark.slow),
        pytest.param("DeepLabV3+", marks=pytest.mark.slow),
    ],
)
def test_a_config_is_pruned_to_half_equal_and_trains(benchmark, config):
    row = benchmark.measure(config)
    assert benchmark.good(row) and 0.45 < row["kept"] <= 0.505, row
    assert config in benchmark.table({config: row}) and "1 of all 1 (100.0%)" in benchmark.summary({config: row})


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError("No module named 'mmdet'", name="mmdet"), "needs mmdet"),
        (RuntimeError("shapes"), ""),
    ],
)
def test_what_cannot_run_here_counts_apart(benchmark, monkeypatch, error, says):
    def build(config):
        raise error

    monkeypatch.setattr(benchmark, "build", build)
    row = benchmark.measure("a.yaml")
    assert not benchmark.good(row) and says in row["absent"] and bool(row["absent"]) == bool(says)
    assert f"0 of the {0 if says else 1} configs whose operators" in benchmark.summary({"a.yaml": row})
    assert (says or "RuntimeError: shapes") in benchmark.table({"a.yaml": row})


def test_rows_that_do_not_count(benchmark):
    row = {"kept": 0.5, "exact_equal": True, "inexact": "group norm", "equal": False}
    assert benchmark.good(row)
    assert not benchmark.good(row | {"exact_equal": False})
    assert not benchmark.good(row | {"kept": 0.6})


def test_the_zoo_holds_yaml_and_lazy_configs(benchmark):
    found = [config for config in benchmark.configs() if config not in benchmark.MODELS]
    assert {Path(config).suffix for config in found} == {".yaml", ".py"} and len(found) > 100
