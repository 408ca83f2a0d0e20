#!/usr/bin/env python3
"""Trains, prunes and evaluates object detectors, with masks or without.

    python projects/detection/train_net.py --config-file projects/detection/configs/.../....yaml

See README.md beside this file.
"""

from __future__ import annotations

from sirfp.training.begin import begin

begin()  # before imports that need Detectron2

from collections.abc import Mapping, Sequence

import torch
from detection import DetectionEvaluator, check_data, draw_boxes
from detectron2.config import CfgNode

from sirfp.engine import Trainer, run
from sirfp.training.output_folder import predictions_folder


class DetectionTrainer(Trainer):
    """Trains a detector with Detectron2's data and augmentation and COCO's evaluation."""

    @classmethod
    def check_data(cls, cfg: CfgNode, names: Sequence[str]) -> None:
        """Raises InputError unless data sets are valid and fit the detector."""
        check_data(cfg, names)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DetectionEvaluator:
        """Builds the evaluator of COCO's average precision."""
        asked = {"bbox": True, "segm": cfg.MODEL.MASK_ON, "keypoints": cfg.MODEL.KEYPOINT_ON}
        tasks, folder = [task for task, on in asked.items() if on], predictions_folder(cfg, dataset_name)
        sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
        return DetectionEvaluator(dataset_name, tasks, cfg.OUTPUT_DIR, folder, sigmas)

    def draw(self, models: Mapping[str, torch.nn.Module], path: str) -> None:
        """Draws the detections of each detector in a few test images."""
        draw_boxes(self.cfg, models, path)


if __name__ == "__main__":
    run(DetectionTrainer)
