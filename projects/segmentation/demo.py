#!/usr/bin/env python3
"""The demo: trains a DeepLabV3+ on the embedded scenes, prunes it by SIRFP in the same run, fine-tunes and reports.

    make demo

Needs no download and no GPU. Takes a few minutes on two cores. Writes to output/demo.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from segmentation import add_segmentation_config
from train_net import SegmentationTrainer

from sirfp.data.scenes import make_scenes
from sirfp.engine import one_line_errors, run

CONFIG = Path(__file__).parent / "configs/scenes/deeplab_v3_plus_r18_sirfp.yaml"
OUTPUT = Path("output/demo")


def main() -> None:
    """Makes the scenes if they are missing, runs the config, and prints the results."""
    with one_line_errors():
        scenes = make_scenes()
        shutil.rmtree(OUTPUT, ignore_errors=True)
    print(f"Scenes are in {scenes.root}; the run's log is in {OUTPUT}/log.txt")
    run(SegmentationTrainer, add_segmentation_config, ["--config-file", str(CONFIG), "OUTPUT_DIR", str(OUTPUT)])
    Console().print(Markdown((OUTPUT / "pruning.md").read_text()))
    for name in ("kept_channels.png", "predictions.png", "pruned.safetensors"):
        print(f"{OUTPUT / name}")


if __name__ == "__main__":
    main()
