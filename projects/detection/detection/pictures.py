"""A picture of a few validation images, with the true boxes and the boxes found by each detector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from torch import nn

from sirfp.data.pixels import read_pixels
from sirfp.network.forward import inference
from sirfp.reporting import figures
from sirfp.reporting.figures import Picture

LEAST, MOST = 0.3, 20
"""The lowest score of a drawn box, and the largest number of boxes drawn in an image."""


def draw_boxes(cfg: CfgNode, models: Mapping[str, nn.Module], path: str, count: int = 4) -> None:
    """Draws the detections in evenly spaced images of the first test set, one row per image.

    An image without boxes says so below.

    Args:
        cfg: the whole config.
        models: {title of the column: detector}.
        path: the PNG file.
        count: number of images.
    """
    data = cfg.DATASETS.TEST[0]
    records, mapper = DatasetCatalog.get(data), DatasetMapper(cfg, is_train=False)
    chosen = figures.evenly_spaced(records, count)
    names = list(MetadataCatalog.get(data).thing_classes)
    palette = figures.colours(len(names) + 1)[1:]

    def picture(image: np.ndarray, title: str, boxes, classes, scores=None) -> Picture:
        said = [f"{names[c]} {s:.2f}" for c, s in zip(classes, scores, strict=True)] if scores else None
        nothing = f"no detection above {LEAST:g}" if scores is not None else "no object"
        lines = () if boxes else ((nothing, figures.INK),)
        return Picture(image, title, boxes, said or [names[c] for c in classes], [palette[c] for c in classes], lines)

    rows = []
    for record in chosen:
        image = read_pixels(record["file_name"], "RGB")
        true = [(BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS), a["category_id"])
                for a in record.get("annotations", ())]  # fmt: skip
        row = [picture(image, "truth", [box for box, _ in true], [c for _, c in true])]
        for title, model in models.items():
            with inference(model):
                found = model([mapper(record)])[0]["instances"].to("cpu")
            found = found[found.scores >= LEAST][:MOST]
            boxes, classes = found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()
            row.append(picture(image, title, boxes, classes, found.scores.tolist()))
        rows.append(row)
    figures.gallery(rows, path)
