"""Reads the files that mark runs of a study as done or failed. An incomplete or damaged file counts as missing.

The structure of the files is checked as for any untrusted input, because later code relies on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_done(path: Path) -> dict[str, Any] | None:
    """Reads a finished run's `done.json`; None if the file is missing, damaged or of another structure."""
    found = _read(path)
    if not isinstance(found.get("fingerprint"), str) or not _is_rows(found.get("rows")):
        return None
    if not (found.get("seconds") is None or _is_number(found["seconds"])):
        return None
    pairs = [found[key] for key in ("flops", "params") if key in found]
    widths = found.get("widths", {})
    if not isinstance(widths, dict):
        return None
    return found if all(map(_is_pair, [*pairs, *widths.values()])) else None


def read_failed(path: Path) -> dict[str, Any] | None:
    """Reads a failed run's `failed.json`; None if the file is missing, damaged or of another structure."""
    found = _read(path)
    tail = found.get("tail")
    texts = isinstance(tail, list) and all(isinstance(line, str) for line in [*tail, found.get("cause")])
    return found if texts and isinstance(found.get("settings"), dict) else None


def _read(path: Path) -> dict[str, Any]:
    """Reads a JSON object; returns {} if the file is missing or holds no JSON object."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_rows(rows: Any) -> bool:
    """True for {row: {"metrics": {metric: number}, cost: number, ...}, ...} with at least one row."""
    if not isinstance(rows, dict) or not rows:
        return False
    for row in rows.values():
        if not isinstance(row, dict) or not isinstance(row.get("metrics"), dict):
            return False
        costs: Mapping[str, Any] = {key: value for key, value in row.items() if key != "metrics"}
        if not all(map(_is_number, [*row["metrics"].values(), *costs.values()])):
            return False
    return True


def _is_pair(value: Any) -> bool:
    """True for a list of two numbers, (dense, pruned) or (kept, dense), whose first is not 0."""
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] != 0


def _is_number(value: Any) -> bool:
    """True for a float or a 64-bit integer. Larger integers may be too large for a float."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63)
