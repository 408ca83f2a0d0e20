"""Average precision of boxes (and masks, keypoints) as COCO has it: AP, AP50, AP75, by size and by class."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.mask import encode
from tabulate import tabulate


class DetectionEvaluator(COCOEvaluator):
    """Detectron2's `COCOEvaluator`, quieter; a detector that finds nothing has an AP of 0.

    It uses Detectron2's compiled COCO evaluation where that can be loaded, else pycocotools'.

    Args:
        dataset_name: a registered data set with a `json_file` in COCO's format, or one that can be converted.
        tasks: which of "bbox", "segm" and "keypoints".
        output_dir: where the converted annotations of a set in another format go.
    """

    def __init__(self, dataset_name: str, tasks: Sequence[str] = ("bbox",), output_dir: str | None = None):
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            super().__init__(dataset_name, tuple(tasks), output_dir=output_dir)
            add_missing_fields(self._coco_api)
        self._output_dir = None  # predictions of large sets are large
        self._dataset_name = dataset_name

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, dict[str, float]]:
        """Returns {"bbox": {"AP": ..., "AP50": ..., "AP-<class>": ...}, ...} in per cent, on the main process.

        A value is NaN where the data have nothing of its kind, e.g. no small boxes.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            results = super().evaluate(img_ids)
        for task, values in (results or {}).items():
            table = tabulate(values.items(), floatfmt=".1f")
            self._logger.info(f"{task} of {self._dataset_name}, in per cent:\n{table}")
        return results

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        if not any(found["instances"] for found in predictions):
            predictions[0]["instances"] = [empty_detection(self._coco_api, predictions[0]["image_id"])]
        super()._eval_predictions(predictions, img_ids)


def empty_detection(truth: COCO, image: int | str) -> dict[str, Any]:
    """A detection of nothing, for pycocotools, which cannot evaluate none: an empty box, mask and pose of score 0."""
    height, width = (truth.imgs[image][side] for side in ("height", "width"))
    mask = encode(np.zeros((int(height), int(width)), np.uint8, order="F"))
    mask["counts"] = mask["counts"].decode("ascii")
    pose = next((one["keypoints"] for one in truth.anns.values() if one.get("keypoints")), [0, 0, 0])
    empty = {"bbox": [0.0, 0.0, 0.0, 0.0], "segmentation": mask, "keypoints": [0.0] * len(pose)}
    return {"image_id": image, "category_id": 0, "score": 0.0, **empty}


def add_missing_fields(truth: COCO) -> None:
    """Gives annotations what pycocotools reads and many files lack, in place: an area, and an id of at least 1.

    An object of id 0 counts as missed, as 0 stands for no match.
    """
    for number, annotation in enumerate(truth.dataset.get("annotations", ()), 1):
        annotation["id"] = number
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
    truth.createIndex()
