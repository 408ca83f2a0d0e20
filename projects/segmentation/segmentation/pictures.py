"""A picture of a few validation images: the image, the truth, and the prediction of each network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from sirfp.data.folders import read_label
from sirfp.network.forward import inference
from sirfp.reporting import figures

from .mapper import SegmentationMapper


def draw_predictions(cfg: CfgNode, models: Mapping[str, nn.Module], path: str, count: int = 4) -> None:
    """Draws the predictions of networks for evenly spaced images of the first test set.

    Args:
        cfg: the whole config.
        models: {title of the column: network}.
        path: the PNG file.
        count: number of images.
    """
    name = cfg.DATASETS.TEST[0]
    records, mapper = DatasetCatalog.get(name), SegmentationMapper(cfg, is_train=False)
    chosen = figures.evenly_spaced(records, count)
    given = [mapper(record) for record in chosen]
    images = [item["image"].permute(1, 2, 0).numpy() for item in given]
    if cfg.INPUT.FORMAT == "BGR":
        images = [image[:, :, ::-1] for image in images]
    predicted: dict[str, list[np.ndarray]] = {}
    for label, model in models.items():
        with inference(model):
            predicted[label] = [model([item])[0]["sem_seg"].argmax(0).cpu().numpy() for item in given]
    truths = [read_label(record["sem_seg_file_name"], np.int32) for record in chosen]
    meta = MetadataCatalog.get(name)
    figures.predictions(images, truths, predicted, meta.stuff_classes, path, ignore=meta.ignore_label)
