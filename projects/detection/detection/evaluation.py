"""Average precision of boxes (and masks, keypoints) as COCO has it: AP, AP50, AP75, by size and by class."""

from __future__ import annotations

import contextlib
import io
import math

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from tabulate import tabulate

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class DetectionEvaluator(COCOEvaluator):
    """Detectron2's `COCOEvaluator`, quieter; a detector that finds nothing has an AP of 0.

    It uses Detectron2's compiled COCO evaluation where that can be loaded, else pycocotools'.

    Args:
        dataset_name: a registered data set with a `json_file` in COCO's format.
    """

    def __init__(self, dataset_name: str):
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            super().__init__(dataset_name)
        self._dataset_name = dataset_name

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, dict[str, float]]:
        """Returns {"bbox": {"AP": ..., "AP50": ..., "AP-<class>": ...}, ...} in per cent, on the main process.

        A value is NaN where the data have nothing of its kind, e.g. no small boxes.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            results = super().evaluate(img_ids)
        names = MetadataCatalog.get(self._dataset_name).thing_classes
        for task, values in (results or {}).items():
            if all(math.isnan(v) for v in values.values()):
                values |= dict.fromkeys((*METRICS, *(f"AP-{name}" for name in names)), 0.0)
            rows = [(key, value) for key, value in values.items()]
            self._logger.info(f"{task} of {self._dataset_name}, in per cent:\n{tabulate(rows, floatfmt='.1f')}")
        return results
