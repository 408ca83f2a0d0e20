"""The ablation's table, over the fake `train_net.py`."""

from __future__ import annotations

import sys

from scripts import loaded


def test_the_table_says_what_each_choice_changes_and_is_worth(bench, capsys, monkeypatch):
    bench.content |= {
        "criteria": ["sirfp", {"name": "raw", "criterion": "sirfp", "overrides": {"SIRFP.PER_POSITION": False}}],
        "budgets": [0.5],
        "seeds": [1],
    }
    monkeypatch.setattr(sys, "argv", ["x", "--study", str(bench.file), "--folder", str(bench.root / "out")])
    with loaded("benchmarks/ablation_sirfp.py") as script:
        assert script.main() == 0
    lines = capsys.readouterr().out.splitlines()
    base, raw = lines[-3:-1]
    assert base.startswith("| sirfp |  | ") and "| +0.0 |" in base
    assert raw.startswith("| raw | `SIRFP.PER_POSITION False` | ") and raw.count("|") == 8
