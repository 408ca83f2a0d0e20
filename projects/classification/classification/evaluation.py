"""Top-1, top-5 and loss over a test set; a table of the predicted classes."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from sirfp.files.whole import whole_file
from sirfp.training.output_folder import predictions_folder

from .pictures import class_names

TABLE = "classes.csv"
"""Name of the table of predicted classes."""


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
        predictions: folder for the table `TABLE`; None for no table. Each evaluation replaces it. Its columns are:

            - file: the image, relative to the data set's root;
            - class: the class with the highest probability;
            - score: its probability.
        files: the data set's images, in the order in which the processes read them one after another.
        classes: the names of the classes.
    """

    def __init__(
        self, name: str, predictions: Path | None = None, files: Sequence[str] = (), classes: Sequence[str] = ()
    ):
        self.name = name
        self.table = None if predictions is None else predictions / TABLE
        self.files, self.classes = files, classes
        self.reset()

    @classmethod
    def from_config(cls, cfg: CfgNode, name: str) -> AccuracyEvaluator:
        """Builds the evaluator from `TEST.PREDICTIONS`."""
        folder = predictions_folder(cfg, name)
        if folder is None:
            return cls(name)
        images = DatasetCatalog.get(name)
        return cls(name, folder, images.filenames(), class_names(images, cfg.MODEL.CLASSIFIER.NUM_CLASSES))

    def reset(self) -> None:
        self.right = {1: 0, 5: 0}
        self.loss, self.images = 0.0, 0
        self.found: list[tuple[int, float]] = []  # class and score of each image

    def process(self, inputs: tuple[torch.Tensor, torch.Tensor], outputs: torch.Tensor) -> None:
        """Counts the correct predictions of a batch from its logits (N, classes)."""
        labels, logits = inputs[1], outputs.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        for k in self.right:
            self.right[k] += int(best[:, :k].sum())
        self.loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        self.images += len(labels)
        if self.table is not None:
            scores, indices = logits.softmax(1).max(1)
            self.found += zip(indices.tolist(), scores.tolist(), strict=True)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Returns {"classification": {"top1": ..., "top5": ..., "loss": ...}}; top1 and top5 are in per cent."""
        counts = comm.gather((self.right, self.loss, self.images))
        found = comm.gather(self.found)
        if not comm.is_main_process():
            return {}
        if self.table is not None:
            self._write(self.table, list(chain(*found)))
        images = max(sum(part[2] for part in counts), 1)
        results = {f"top{k}": 100 * sum(part[0][k] for part in counts) / images for k in self.right}
        results["loss"] = sum(part[1] for part in counts) / images
        line = f"top-1 {results['top1']:.2f}, top-5 {results['top5']:.2f}, loss {results['loss']:.4f}"
        logging.getLogger("sirfp").info(f"Classification of {self.name}, {images} images: {line}")
        return {"classification": results}

    def _write(self, path: Path, found: Sequence[tuple[int, float]]) -> None:
        with whole_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "class", "score"))
            for name, (index, score) in zip(self.files, found, strict=True):
                table.writerow((name, self.classes[index], f"{score:.6f}"))
        logging.getLogger("sirfp").info(f"Predictions of {self.name} are in {path}")
