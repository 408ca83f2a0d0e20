"""A study over the fake `train_net.py`, in a folder of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from sirfp.cli import main

STUDY: dict[str, Any] = {
    "folder": "out",
    "iterations": {"dense": 10, "accumulate": 4, "recover": 2, "finetune": 6},
    "steps": 2,
    "criteria": ["sirfp", "magnitude"],
    "budgets": [0.5, 0.75],
    "seeds": [1, 3],
    "tasks": {"task": {"script": "train_net.py", "metric": "task/score", "models": {"net": "dense.yaml"}}},
}


class Bench:
    """The folder of a study, with methods for tests to change it."""

    def __init__(self, root: Path):
        self.root, self.content = root, json.loads(json.dumps(STUDY))
        shutil.copy(Path(__file__).parent / "fake_train_net.py", root / "train_net.py")
        (root / "dense.yaml").write_text("_BASE_: base.yaml\n")
        (root / "base.yaml").write_text("SOLVER:\n  BASE_LR: 0.1\n")

    @property
    def file(self) -> Path:
        file = self.root / "study.yaml"
        file.write_text(yaml.safe_dump(self.content))
        return file

    def run(self, *options: str) -> int:
        return main(["study", str(self.file), "--folder", str(self.root / "out"), *options])

    def calls(self) -> list[dict[str, Any]]:
        """What was started since the last call of this."""
        file = self.root / "calls.txt"
        said = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        file.unlink(missing_ok=True)
        return said

    def results(self) -> dict[str, Any]:
        return json.loads((self.root / "out" / "results.json").read_text())
