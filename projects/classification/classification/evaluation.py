"""Top-1, top-5 and loss over a test set."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn


class BatchAdapter(nn.Module):
    """Calls a network with the images of a batch; Detectron2's evaluation passes (images, labels)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Logits (N, classes)."""
        return self.network(batch[0])


class AccuracyEvaluator(DatasetEvaluator):
    """Counts correct predictions over all processes.

    Args:
        name: the data set's name.
    """

    def __init__(self, name: str):
        self.name = name
        self.reset()

    def reset(self) -> None:
        self.right = {1: 0, 5: 0}
        self.loss, self.images = 0.0, 0

    def process(self, inputs: tuple[torch.Tensor, torch.Tensor], outputs: torch.Tensor) -> None:
        """Counts the correct predictions of a batch from its logits (N, classes)."""
        labels, logits = inputs[1], outputs.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        for k in self.right:
            self.right[k] += int(best[:, :k].sum())
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        self.images += len(labels)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Returns {"classification": {"top1": ..., "top5": ..., "loss": ...}}; top1 and top5 are in per cent."""
        counts = comm.gather((self.right, self.loss, self.images))
        if not comm.is_main_process():
            return {}
        images = max(sum(part[2] for part in counts), 1)
        found = {f"top{k}": 100 * sum(part[0][k] for part in counts) / images for k in self.right}
        found["loss"] = sum(part[1] for part in counts) / images
        line = f"top-1 {found['top1']:.2f}, top-5 {found['top5']:.2f}, loss {found['loss']:.4f}"
        logging.getLogger("sirfp").info(f"Classification of {self.name}, {images} images: {line}")
        return {"classification": found}
