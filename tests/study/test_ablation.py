"""The ablation's table, over the fake `train_net.py`."""

from __future__ import annotations

import sys

from scripts import loaded


def test_the_table_says_what_each_choice_changes_and_is_worth(bench, capsys, monkeypatch):
    bench.content |= {
        "criteria": ["sirfp", {"name": "sirfp-raw", "criterion": "sirfp", "overrides": {"SIRFP.PER_POSITION": False}}],
        "budgets": [0.5],
        "seeds": [1],
    }
    monkeypatch.setattr(sys, "argv", ["x", "--study", str(bench.file), "--folder", str(bench.root / "out")])
    with loaded("benchmarks/ablation_sirfp.py") as script:
        assert script.main() == 0
    lines = capsys.readouterr().out.splitlines()
    base, raw = lines[-3:-1]
    assert base.startswith("| sirfp |  | ") and "|  |" in base
    assert raw.startswith("| sirfp-raw | `SIRFP.PER_POSITION False` | ") and raw.count("|") == 8
    worth = [float(line.split("|")[4]) for line in (base, raw)]
    assert f"| {worth[1] - worth[0]:+.1f} (sirfp) |" in raw


def test_what_a_choice_is_held_against():
    names = ["default", "redundancy", "redundancy-raw", "redundancy-raw-union"]
    with loaded("benchmarks/ablation_sirfp.py") as script:
        assert [script.base_of(name, names) for name in names] == ["default", "default", "redundancy", "redundancy-raw"]
