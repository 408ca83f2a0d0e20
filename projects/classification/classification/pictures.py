"""A picture of a few validation images, with the true class and the prediction of each network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from sirfp.data.images import known_classes
from sirfp.network.forward import inference
from sirfp.reporting import figures
from sirfp.reporting.figures import Picture

from .inputs import preprocessing
from .loaders import test_loader

COLUMNS = 6


def draw_predictions(cfg: CfgNode, models: Mapping[str, nn.Module], path: str, count: int = 12) -> None:
    """Draws evenly spaced images of the first test set, with predictions; draws nothing for a streaming set.

    Args:
        cfg: the whole config.
        models: {name to print before the prediction: network}.
        path: the PNG file.
        count: number of images.
    """
    images = test_loader(cfg, cfg.DATASETS.TEST[0]).dataset
    if not hasattr(images, "__getitem__") or not len(images):
        return
    chosen = figures.evenly_spaced(images, count)
    pixels = torch.stack([torch.as_tensor(np.asarray(image)) for image, _ in chosen])  # uint8: timm scales later
    how = preprocessing(cfg)
    mean, std = (torch.tensor(how[key]).view(1, -1, 1, 1) * 255 for key in ("mean", "std"))
    names = class_names(images, cfg.MODEL.CLASSIFIER.NUM_CLASSES)
    answers: dict[str, list[int]] = {}
    for title, model in models.items():
        with inference(model):
            inputs = ((pixels.float() - mean) / std).to(next(model.parameters()).device)
            answers[title] = model(inputs).argmax(1).tolist()
    pictures = []
    for i, (_, label) in enumerate(chosen):
        lines = [
            (f"{title}: {names[found[i]]} ✓", figures.RIGHT)
            if found[i] == label
            else (f"{title}: {names[found[i]]} ✗", figures.WRONG)
            for title, found in answers.items()
        ]
        pictures.append(Picture(pixels[i].permute(1, 2, 0).numpy(), names[label], lines=lines))
    width = min(COLUMNS, len(pictures))
    whole = len(pictures) // width * width
    figures.gallery([pictures[i : i + width] for i in range(0, whole, width)], path, cell=1.7)


def class_names(images, count: int) -> list[str]:
    """Names of a data set's classes; their indices if the data set has no names."""
    names = known_classes(images)
    return [names[i] if i < len(names) else str(i) for i in range(count)]
