"""Files of predicted label maps, in the labels that a data set is published with: what test servers take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sirfp.data.descriptions import published_ids


class PredictionFiles:
    """Writes `<folder>/<name of the image>.png`, one for each image, of the image's size and one channel.

    Values are the set's published ids: Cityscapes' label ids (7 is road), as its server wants them, ADE20K's 1..150 and
    so on; class indices where a set publishes those or is not known.

    Args:
        folder: made where it is not there.
        dataset_name: in the catalogs.
        classes: how many.
    """

    def __init__(self, folder: Path, dataset_name: str, classes: int):
        self.folder = folder
        ids = np.array(published_ids(dataset_name) or range(classes))
        self.ids = ids.astype(np.uint8 if ids.max() <= 255 else np.uint16)
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, image: str, predicted: np.ndarray) -> Path:
        """Writes class indices (H, W) of an image under its name."""
        path = self.folder / f"{Path(image).stem}.png"
        Image.fromarray(self.ids[predicted]).save(path)
        return path
