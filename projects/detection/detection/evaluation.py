"""COCO's average precision of boxes, masks and keypoints: AP, AP50, AP75, by size and class. File of detections."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.mask import encode
from tabulate import tabulate

from sirfp.files.whole import whole_file

RESULTS = "coco_instances_results.json"
"""Name of the file of detections; Detectron2 uses the same name."""


class DetectionEvaluator(COCOEvaluator):
    """Detectron2's `COCOEvaluator` with less output; a detector that finds nothing has an AP of 0.

    Uses Detectron2's compiled COCO evaluation if it can be loaded, else the evaluation of pycocotools.

    Args:
        dataset_name: a registered data set, with a `json_file` in COCO's format or convertible to this format.
        tasks: any of "bbox", "segm" and "keypoints".
        output_dir: folder for the annotations of a data set that has to be converted to COCO's format.
        predictions: folder for the file of detections `RESULTS`; None for no file. Each evaluation replaces it.
        sigmas: tolerance of each keypoint, as TEST.KEYPOINT_OKS_SIGMAS; COCO's, of a person's 17, if empty.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] = ("bbox",),
        output_dir: str | None = None,
        predictions: Path | None = None,
        sigmas: Sequence[float] = (),
    ):
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            super().__init__(dataset_name, tuple(tasks), output_dir=output_dir, kpt_oks_sigmas=tuple(sigmas))
            add_missing_fields(self._coco_api, len(self._metadata.get("keypoint_names", ())))
        self._output_dir = None  # Detectron2 would also write a pickle
        self._file = None if predictions is None else predictions / RESULTS
        self._dataset_name = dataset_name

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, dict[str, float]]:
        """Returns {"bbox": {"AP": ..., "AP50": ..., "AP-<class>": ...}, ...} in per cent, on the main process.

        A value is NaN if the data set has no objects of that kind, e.g. APs is NaN without small boxes.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            results = super().evaluate(img_ids)
        for task, values in (results or {}).items():
            table = tabulate(values.items(), floatfmt=".1f")
            self._logger.info(f"{task} of {self._dataset_name}, in per cent:\n{table}")
        return results

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        if self._file is not None:
            self._write(self._file, predictions)
        if not any(found["instances"] for found in predictions):
            predictions[0]["instances"] = [empty_detection(self._coco_api, predictions[0]["image_id"])]
        super()._eval_predictions(predictions, img_ids)

    def _write(self, path: Path, predictions: list[dict[str, Any]]) -> None:
        """Writes detections in COCO's format of results, with the ids of the annotation file's categories."""
        ids = {index: id_ for id_, index in self._metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
        found = [
            one | {"category_id": ids.get(one["category_id"], one["category_id"])}
            for prediction in predictions
            for one in prediction["instances"]
        ]
        with whole_file(path) as beside:
            beside.write_text(json.dumps(found))
        self._logger.info(f"Predictions of {self._dataset_name} are in {path}")


def empty_detection(truth: COCO, image: int | str) -> dict[str, Any]:
    """Makes a detection with empty box, mask and pose and score 0: pycocotools cannot evaluate an empty list."""
    height, width = (truth.imgs[image][side] for side in ("height", "width"))
    mask = encode(np.zeros((int(height), int(width)), np.uint8, order="F"))
    mask["counts"] = mask["counts"].decode("ascii")
    pose = next((one["keypoints"] for one in truth.anns.values() if one.get("keypoints")), [0, 0, 0])
    empty = {"bbox": [0.0, 0.0, 0.0, 0.0], "segmentation": mask, "keypoints": [0.0] * len(pose)}
    return {"image_id": image, "category_id": 0, "score": 0.0, **empty}


def add_missing_fields(truth: COCO, keypoints: int = 0) -> None:
    """Adds areas and ids (1, 2, ...) to annotations in place: pycocotools needs them, but many files lack them.

    Ids start at 1 because pycocotools uses id 0 for "no match": an object with id 0 would always count as missed.

    Args:
        truth: the annotations.
        keypoints: the number of keypoints of an object; annotations without keypoints get as many that are not
            labelled, and all get the number of those that are.
    """
    for number, annotation in enumerate(truth.dataset.get("annotations", ()), 1):
        annotation["id"] = number
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
        if keypoints:
            points = annotation.setdefault("keypoints", [0] * 3 * keypoints)
            annotation.setdefault("num_keypoints", sum(value > 0 for value in points[2::3]))
    truth.createIndex()
