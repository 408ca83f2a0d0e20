#!/usr/bin/env python3
"""Trains, prunes and evaluates timm's classification networks.

    python projects/classification/train_net.py --config-file projects/classification/configs/.../....yaml

See README.md beside this file.
"""

from __future__ import annotations

from sirfp.training.begin import begin

begin()  # before imports that need Detectron2

from collections.abc import Iterator, Mapping, Sequence

import torch
from classification import (
    AccuracyEvaluator,
    BatchAdapter,
    Objective,
    add_classification_config,
    build_network,
    build_optimizer,
    check_config,
    check_data,
    draw_predictions,
    image_channels,
    image_size,
    test_loader,
    train_loader,
)
from detectron2.config import CfgNode

from sirfp.engine import Trainer, run


class ClassificationTrainer(Trainer):
    """Trains a plain timm network with timm's data loaders, losses and optimizers."""

    def __init__(self, cfg: CfgNode):
        self.objective = Objective(cfg)
        super().__init__(cfg)

    @classmethod
    def check_data(cls, cfg: CfgNode, names: Sequence[str]) -> None:
        """Raises InputError unless data sets are valid and fit the network."""
        check_data(cfg, names)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """Checks the config, then builds the network."""
        check_config(cfg)
        return build_network(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Builds one of timm's optimizers."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """Builds the loader of augmented training batches."""
        return train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Builds the loader of test batches, in order."""
        return test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> AccuracyEvaluator:
        """Builds the evaluator of top-1, top-5 and loss."""
        return AccuracyEvaluator.from_config(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators=None) -> dict:
        """Evaluates a network on DATASETS.TEST."""
        return super().test(cfg, BatchAdapter(model), evaluators)

    def losses(self, model: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Computes the losses of a batch of images and labels."""
        return self.objective(model, *data)

    def draw(self, models: Mapping[str, torch.nn.Module], path: str) -> None:
        """Draws the predictions of networks for a few test images."""
        draw_predictions(self.cfg, models, path)

    def batches(self) -> Iterator[torch.Tensor]:
        """Yields the images of the next batches."""
        return (images for images, _ in super().batches())

    def example_inputs(self) -> torch.Tensor:
        """One random image."""
        generator = torch.Generator().manual_seed(0)
        size = (image_channels(self.cfg), *image_size(self.cfg))
        return torch.randn(1, *size, generator=generator).to(self.cfg.MODEL.DEVICE)


if __name__ == "__main__":
    run(ClassificationTrainer, add_classification_config)
