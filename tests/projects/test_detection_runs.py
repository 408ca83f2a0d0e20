"""Whole runs of the detection project, in processes of their own: killed and resumed; the embedded scenes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sirfp.cli import main
from sirfp.config import load_config

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "detection"
PATIENCE = 120  # seconds
pytestmark = pytest.mark.slow


def command(config: str, *options: object) -> list[str]:
    script = [sys.executable, str(PROJECT / "train_net.py"), "--num-gpus", "0"]
    return [*script, "--config-file", str(PROJECT / "configs" / config), *map(str, options)]


@pytest.fixture
def options(tmp_path):
    """Training of a tiny network on one image that is always the same, so that the data's order tells nothing."""
    image = np.random.default_rng(0).integers(90, 150, (64, 64, 3)).astype(np.uint8)
    image[8:40, 8:40] = 250
    Image.fromarray(image).save(tmp_path / "0.png")
    boxes = tmp_path / "boxes.json"
    box = {"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, "bbox": [8, 8, 32, 32], "area": 1024}
    images = [{"id": 0, "file_name": "0.png", "height": 64, "width": 64}]
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "bright"}]}
    boxes.write_text(json.dumps(content))
    return [
        "DATASETS.COCO.NAME", "one", "DATASETS.TRAIN", "('one_train',)", "DATASETS.TEST", "('one_test',)",
        "DATASETS.COCO.TRAIN_ANNOTATIONS", boxes, "DATASETS.COCO.TRAIN_IMAGES", tmp_path,
        "DATASETS.COCO.TEST_ANNOTATIONS", boxes, "DATASETS.COCO.TEST_IMAGES", tmp_path,
        "MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "mobilenetv3_small_050", "MODEL.TIMM.WEIGHTS", "",
        "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RETINANET.NUM_CLASSES", 1, "MODEL.RETINANET.NUM_CONVS", 1,
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "INPUT.RANDOM_FLIP", "none",
        "SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 36, "SOLVER.WARMUP_ITERS", 0, "SOLVER.CHECKPOINT_PERIOD", 4,
        "SIRFP.KEEP_FLOPS", 0.6, "SIRFP.STEPS", 2, "SIRFP.START_ITER", 16, "SIRFP.ACCUMULATE_ITERS", 10,
        "SIRFP.ACCUMULATE_PERIOD", 1, "SIRFP.RECOVER_ITERS", 12, "SIRFP.INPUT_SIZE", "[64, 64]",
        "SIRFP.HOOKS", "['Accumulate', 'Report', 'PruneSteps', 'Recover']",
        "TEST.EVAL_PERIOD", 0, "TEST.BEST_METRIC", "", "DATALOADER.NUM_WORKERS", 0, "SEED", 1,
    ]  # fmt: skip


def test_a_killed_run_resumes_to_the_same_plan(options, tmp_path):
    config = "own/retinanet_r18_sirfp.yaml"
    subprocess.run(command(config, *options, "OUTPUT_DIR", tmp_path / "whole"), check=True, capture_output=True)
    cut = tmp_path / "cut"
    start = command(config, *options, "OUTPUT_DIR", cut)
    resume = [*start[:4], "--resume", *start[4:]]
    for argv, iteration in ((start, 11), (resume, 19)):  # while it accumulates; while it recovers
        with (tmp_path / "log.txt").open("w") as log:
            child = subprocess.Popen(argv, stdout=log, stderr=log)
        wait_for(cut / f"model_{iteration:07d}.pth", child, tmp_path / "log.txt")
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not (cut / "model_final.pth").exists()
    subprocess.run(resume, check=True, capture_output=True)
    assert (cut / "plan.json").read_text() == (tmp_path / "whole" / "plan.json").read_text()


def wait_for(path: Path, child: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + PATIENCE
    while not path.exists():
        assert child.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
        time.sleep(0.02)


def test_the_embedded_scenes_train_and_prune(tmp_path):
    """Dense well above chance, half of the FLOPs gone, and most of it there again after fine-tuning.

    SIRFP_TEST_ITERS shortens the run, to see that it works; its AP then says nothing and is not looked at.
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
    rows = json.loads((tmp_path / "out" / "pruning.json").read_text())
    assert rows["pruned"]["flops"] / rows["dense"]["flops"] == pytest.approx(share, abs=0.005)
    dense, tuned = (rows[stage]["metrics"]["bbox/AP50"] for stage in ("dense", "fine-tuned"))
    assert few or (dense > 20 and tuned > 15), (dense, tuned)
