"""How exactly budgets are met: by a few networks, and by all of them in the slow tests."""

import json
import subprocess
import sys

import pytest
from marks import slow_but
from scripts import ROOT, loaded


@pytest.fixture(scope="module")
def benchmark():
    with loaded("benchmarks/budgets.py") as module:
        module.prunability_detectron2.SIZE = (64, 64)
        yield module


NETWORKS = ["test_resnet", "test_vit", "COCO-Detection/rpn_R_50_C4_1x.yaml"]


@pytest.mark.parametrize("name", slow_but(NETWORKS, "test_resnet", "test_vit"))
def test_budgets_are_met_to_half_a_percent(benchmark, name):
    row = {"network": name, "plans": benchmark.measure(name)}
    assert [(p["quantity"], p["round_to"]) for p in row["plans"]] == [
        (quantity, multiple) for quantity in ("flops", "params") for multiple in (1, 8)
    ]
    assert all(-benchmark.BOUND <= plan["off"] <= 0 for plan in row["plans"])
    assert benchmark.summary([row])["within_bounds"] and name in benchmark.line(row)


def test_what_misses_its_budget_is_named(benchmark):
    plans = [{"quantity": "flops", "round_to": m, "asked": 0.5, "least": 0.1, "off": 0.0} for m in (1, 8)]
    above, below = ([{**plans[0], "off": off}, plans[1]] for off in (0.001, -0.02))
    rows = [{"network": "a", "plans": plans}, {"network": "b", "plans": above}, {"network": "c", "plans": below}]
    found = benchmark.summary([*rows, {"network": "d", "error": "ModuleNotFoundError: mmdet"}])
    assert set(found["round_to_1"]["beyond"]) == {"b", "c"} and found["cannot_run_here"] == 1
    assert not found["within_bounds"] and found["round_to_8"]["within_half_a_percent"] == 3


@pytest.mark.slow
def test_every_network_of_the_two_tables_meets_its_budgets(tmp_path):
    script = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks/budgets.py"), "--all", "--json"]
    done = subprocess.run([*script, "--results", str(tmp_path / "rows.jsonl")], stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert done.returncode == 0 and found["networks"] > 200, found["round_to_1"]["beyond"]
