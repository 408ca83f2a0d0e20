"""Writes predicted label maps with a data set's published label ids, for test servers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sirfp.data.descriptions import published_ids


class PredictionFiles:
    """Writes a file `<folder>/<name of the image>.png` per image, with the image's size and one channel.

    Values are the data set's published ids, e.g. Cityscapes' label ids (7 is road), which its server requires, or
    ADE20K's 1..150. If the data set publishes class indices or is unknown, values are class indices.

    Args:
        folder: output folder; created if it is missing.
        dataset_name: name of the data set in Detectron2's catalogs.
        classes: number of classes.
    """

    def __init__(self, folder: Path, dataset_name: str, classes: int):
        self.folder = folder
        ids = np.array(published_ids(dataset_name) or range(classes))
        self.ids = ids.astype(np.uint8 if ids.max() <= 255 else np.uint16)
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, image: str, predicted: np.ndarray) -> Path:
        """Writes the class indices (H, W) of an image to the file with the image's name; returns the file."""
        path = self.folder / f"{Path(image).stem}.png"
        Image.fromarray(self.ids[predicted]).save(path)
        return path
