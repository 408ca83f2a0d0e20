"""Mean IoU, IoU and accuracy of each class, pixel accuracy; ignored pixels do not count."""

from __future__ import annotations

import logging

from detectron2.evaluation import SemSegEvaluator
from tabulate import tabulate

from sirfp.data.folders import read_label


class SegmentationEvaluator(SemSegEvaluator):
    """Detectron2's `SemSegEvaluator`, reading palette files rightly, with a table that people can read.

    Boundary IoU and a JSON file of all predictions are left out: they cost more time than a small network.

    Args:
        dataset_name: a registered data set with `stuff_classes` and `ignore_label`.
    """

    def __init__(self, dataset_name: str):
        super().__init__(dataset_name, sem_seg_loading_fn=read_label)
        self._compute_boundary_iou = False

    def encode_json_sem_seg(self, sem_seg, input_file_name: str) -> list:
        """Keeps no predictions."""
        return []

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns {"sem_seg": {"mIoU": ..., "IoU-<class>": ..., "pACC": ...}} in per cent, on the main process."""
        level = self._logger.level
        self._logger.setLevel(logging.WARNING)  # it would print one long dictionary
        try:
            results = super().evaluate()
        finally:
            self._logger.setLevel(level)
        if results is not None:
            self._logger.info(f"Segmentation of {self._dataset_name}, in per cent:\n{self.table(results['sem_seg'])}")
        return results

    def table(self, results: dict[str, float]) -> str:
        """The results as a table, one class a line and the mean below."""
        rows = [(name, results[f"IoU-{name}"], results[f"ACC-{name}"]) for name in self._class_names]
        rows.append(("mean", results["mIoU"], results["mACC"]))
        rows.append(("all pixels", None, results["pACC"]))
        return tabulate(rows, headers=("class", "IoU", "accuracy"), floatfmt=".1f", tablefmt="simple")
