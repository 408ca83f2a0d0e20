"""The page on faults names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (?P<fault>[^|]+) \| (?P<tests>`tests/[^|]+) \|$")


@cache
def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_tests_and_they_exist():
    rows = [row for line in (ROOT / "docs/faults.md").read_text().splitlines() if (row := ROW.match(line))]
    assert len(rows) > 40 and len({row["fault"] for row in rows}) == len(rows)
    for row in rows:
        names = re.findall(r"`([^`]+)`", row["tests"])
        assert row["tests"] == ", ".join(f"`{name}`" for name in names), row["fault"]
        for name in names:
            path, _, function = name.partition("::")
            assert (ROOT / path).is_file() and function in functions(ROOT / path), name
