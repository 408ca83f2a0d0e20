"""A whole run of the detection project on the embedded scenes, in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sirfp.cli import main
from sirfp.config import load_config

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "detection"
pytestmark = pytest.mark.slow


def command(config: str, *options: object) -> list[str]:
    script = [sys.executable, str(PROJECT / "train_net.py"), "--num-gpus", "0"]
    return [*script, "--config-file", str(PROJECT / "configs" / config), *map(str, options)]


def test_the_embedded_scenes_train_and_prune(tmp_path):
    """The dense AP is well above chance, half of the FLOPs are removed, and most of the AP returns after fine-tuning.

    SIRFP_TEST_ITERS shortens the run to check only that it works; its AP is then not tested.
    """
    few = int(os.environ.get("SIRFP_TEST_ITERS", "0"))
    file = PROJECT / "configs/scenes/retinanet_r18_sirfp.yaml"
    share = load_config(file).SIRFP.KEEP_FLOPS
    scenes = tmp_path / "datasets" / "scenes"
    assert main(["data", "scenes", str(scenes), *(["--train", "8", "--val", "4"] if few else [])]) == 0
    options = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", tmp_path / "out"]
    if few:
        options += ["SOLVER.MAX_ITER", 3 * few, "SIRFP.START_ITER", few, "SIRFP.ACCUMULATE_ITERS", few]
        options += ["SIRFP.RECOVER_ITERS", few // 2, "SOLVER.WARMUP_ITERS", 0, "SOLVER.IMS_PER_BATCH", 2]
    environment = os.environ | {"DETECTRON2_DATASETS": str(scenes.parent)}
    done = subprocess.run(command(f"scenes/{file.name}", *options), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warning" not in done.stdout + done.stderr, "no warnings of libraries"
    rows = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert rows["pruned"]["flops"] / rows["dense"]["flops"] == pytest.approx(share, abs=0.005)
    dense, tuned = (rows[stage]["metrics"]["bbox/AP50"] for stage in ("dense", "fine-tuned"))
    assert few or (dense > 20 and tuned > 15), (dense, tuned)
