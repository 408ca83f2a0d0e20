"""Measures IoU and accuracy (per class and mean), boundary IoU and frames per second; writes files of predictions."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from sirfp.config import input_size
from sirfp.data.folders import read_label
from sirfp.network.forward import random_images
from sirfp.network.latency import measure
from sirfp.training.output_folder import predictions_folder

from .boundary import BoundaryIoU
from .predictions import PredictionFiles


class SegmentationEvaluator(SemSegEvaluator):
    """Detectron2's `SemSegEvaluator` with correct reading of palette files and a readable table.

    Does not write Detectron2's JSON file of all predictions. Does not use Detectron2's boundary IoU, which treats label
    values like brightness.

    Args:
        dataset_name: a registered data set with `stuff_classes` and `ignore_label`.
        boundary_ratio: see `BoundaryIoU`; 0 for no boundary IoU.
        predictions: folder for files of predictions, see `PredictionFiles`; None for no files.
    """

    def __init__(self, dataset_name: str, boundary_ratio: float = 0.0, predictions: Path | None = None):
        super().__init__(dataset_name, sem_seg_loading_fn=read_label)
        self._compute_boundary_iou = False
        self._ratio = boundary_ratio
        self._files = None
        if predictions is not None:
            images = list(self.input_file_to_gt_file)
            self._files = PredictionFiles(predictions, dataset_name, len(self._class_names), images)

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str) -> SegmentationEvaluator:
        """Builds the evaluator from `TEST.BOUNDARY_RATIO` and `TEST.PREDICTIONS`."""
        return cls(dataset_name, cfg.TEST.BOUNDARY_RATIO, predictions_folder(cfg, dataset_name))

    def encode_json_sem_seg(self, sem_seg, input_file_name: str) -> list:
        """Returns an empty list, so that predictions are not stored."""
        return []

    def reset(self) -> None:
        super().reset()
        self._boundary = BoundaryIoU(len(self._class_names), self._ignore_label, self._ratio) if self._ratio else None

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, torch.Tensor]]) -> None:
        """Adds images with their logits or probabilities, each (K, H, W)."""
        super().process(inputs, outputs)
        if self._boundary is None and self._files is None:
            return
        for given, output in zip(inputs, outputs, strict=True):
            predicted, image = output["sem_seg"].argmax(0).cpu().numpy(), given["file_name"]
            if self._boundary is not None:
                self._boundary.add(read_label(self.input_file_to_gt_file[image], np.int64), predicted)
            if self._files is not None:
                self._files.write(image, predicted)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns {"sem_seg": {"mIoU": ..., "IoU-<class>": ..., "pACC": ...}} in per cent, on the main process.

        With boundary IoU also "mBoundaryIoU" and "BoundaryIoU-<class>". The result is empty if no pixel is labelled, as
        in test sets with secret labels.
        """
        level = self._logger.level
        self._logger.setLevel(logging.WARNING)  # Detectron2 would print one long dictionary
        try:
            with np.errstate(invalid="ignore"):  # a class that does not occur has no accuracy
                results = super().evaluate()
        finally:
            self._logger.setLevel(level)
        if self._boundary is not None:
            self._boundary.counts = sum(comm.all_gather(self._boundary.counts))
        if results is None:
            return None
        if self._files is not None:
            self._logger.info(f"Predictions of {self._dataset_name} are in {self._files.folder}")
        found = results["sem_seg"]
        if math.isnan(found["pACC"]):
            self._logger.info(f"{self._dataset_name} has no labelled pixel: nothing to measure")
            return {}
        if self._boundary is not None:
            near = 100 * self._boundary.per_class()
            found["mBoundaryIoU"] = float(np.nanmean(near)) if np.isfinite(near).any() else math.nan
            found |= {f"BoundaryIoU-{name}": float(value) for name, value in zip(self._class_names, near, strict=True)}
        self._logger.info(f"Segmentation of {self._dataset_name}, in per cent:\n{self.table(found)}")
        return results

    def table(self, results: dict[str, float]) -> str:
        """Formats the results as a table: one row per class, then the mean."""
        columns = {"IoU": "IoU", "accuracy": "ACC"} | ({"boundary IoU": "BoundaryIoU"} if self._ratio else {})
        rows = [(name, *(results[f"{key}-{name}"] for key in columns.values())) for name in self._class_names]
        rows.append(("mean", *(results[f"m{key}"] for key in columns.values())))
        rows.append(("all pixels", None, results["pACC"]))
        return tabulate(rows, headers=("class", *columns), floatfmt=".1f", tablefmt="simple")


def frames_per_second(cfg: CfgNode, model: nn.Module) -> float:
    """Measures frames per second of a network on its device, for single whole images of `SIRFP.INPUT_SIZE`.

    Uses the median of a few calls after warm-up calls. Times the network alone: no reading of images, no scales,
    windows or mirror images.
    """
    size = input_size(cfg)
    inputs = random_images(size, 1, torch.Generator().manual_seed(0), len(cfg.MODEL.PIXEL_MEAN))
    found = measure({"network": (model, inputs)})["network"]
    device = next(model.parameters()).device
    text = "%.2f frames per second of %d x %d pixels on %s: %.1f ms, between the quartiles %.1f and %.1f"
    times = [1e3 * seconds for seconds in (found.median, found.low, found.high)]
    logging.getLogger("sirfp").info(text, 1 / found.median, *size, device, *times)
    return 1 / found.median
