#!/usr/bin/env python3
"""Trains, prunes and evaluates semantic segmentation networks.

    python projects/segmentation/train_net.py --config-file projects/segmentation/configs/.../....yaml

See README.md beside this file.
"""

from __future__ import annotations

from sirfp.training.begin import begin

begin()  # before imports that need Detectron2

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from segmentation import (
    SAMPLER,
    SegmentationEvaluator,
    SegmentationMapper,
    add_segmentation_config,
    check_data,
    check_model,
    draw_predictions,
    frames_per_second,
    resampling_stream,
    with_supervised_segmentor,
    with_tta,
)

from sirfp.data.stream import TrainingStream, detection_stream
from sirfp.engine import Trainer, run
from sirfp.hooks import unwrapped


class SegmentationTrainer(Trainer):
    """Trains a segmentor, with the data loading, augmentation and evaluation of this project."""

    @classmethod
    def check_data(cls, cfg: CfgNode, names: Sequence[str]) -> None:
        """Raises InputError unless data sets fit the segmentor."""
        check_data(cfg, names)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Builds the segmentor, and checks that the size of training images fits it."""
        model = super().build_model(with_supervised_segmentor(cfg))
        check_model(cfg, model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingStream:
        """Builds batches of augmented crops; SAMPLER_TRAIN "ClassResampling" draws all classes equally often."""
        stream = resampling_stream if cfg.DATALOADER.SAMPLER_TRAIN == SAMPLER else detection_stream
        return stream(cfg, SegmentationMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Builds the loader of test images: whole images, one at a time."""
        return build_detection_test_loader(cfg, dataset_name, mapper=SegmentationMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> SegmentationEvaluator:
        """Builds the evaluator of mean IoU and the other metrics of segmentation."""
        return SegmentationEvaluator.from_config(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators=None) -> dict[str, Any]:
        """Evaluates as Detectron2 does, with the scales and windows in `TEST`, and measures the network's speed."""
        results = super().test(cfg, with_tta(cfg, model), evaluators)
        if cfg.TEST.FPS and comm.is_main_process():
            results["speed"] = {"FPS": frames_per_second(cfg, unwrapped(model))}
        return results

    def losses(self, model: torch.nn.Module, data: Any) -> dict[str, torch.Tensor]:
        """Computes the model's losses; `SOLVER.GSRL.WHEN` determines when GSRL is used."""
        if self.cfg.SOLVER.GSRL.WHEN == "pruned":
            unwrapped(model).rebalanced = self.checkpointer.plan is not None
        return model(data)

    def draw(self, models: Mapping[str, torch.nn.Module], path: str) -> None:
        """Draws the predictions of networks for a few test images."""
        draw_predictions(self.cfg, models, path)


if __name__ == "__main__":
    run(SegmentationTrainer, add_segmentation_config)
