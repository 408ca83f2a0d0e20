"""Writes predicted label maps with a data set's published label ids, for test servers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sirfp.data.descriptions import published_ids


class PredictionFiles:
    """Writes a file `<folder>/<name of the image>.png` per image, with the image's size and one channel.

    If the images lie in several folders, their files lie in the same subfolders of `folder`. Names of files: `names`.

    Values are the data set's published ids, e.g. Cityscapes' label ids (7 is road), which its server requires, or
    ADE20K's 1..150. If the data set publishes class indices or is unknown, values are class indices.

    Args:
        folder: output folder; created if it is missing.
        dataset_name: name of the data set in Detectron2's catalogs.
        classes: number of classes.
        images: the files of all images of the data set.
    """

    def __init__(self, folder: Path, dataset_name: str, classes: int, images: Sequence[str]):
        self.folder, self.names = folder, names(images)
        ids = np.array(published_ids(dataset_name) or range(classes))
        self.ids = ids.astype(np.uint8 if ids.max() <= 255 else np.uint16)
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, image: str, predicted: np.ndarray) -> Path:
        """Writes the class indices (H, W) of one of the images to the file with its name; returns the file."""
        path = self.folder / self.names[image]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.ids[predicted]).save(path)
        return path


def names(images: Sequence[str]) -> dict[str, str]:
    """Names files of predictions, a different one for each image.

    Args:
        images: the files of images.

    Returns:
        {image: its path relative to the deepest folder that contains all images, with the ending .png}. If images of
        one folder differ in their endings only, .png follows the ending: a.jpg.png, a.bmp.png.
    """
    files = {image: Path(image).absolute() for image in images}
    root = os.path.commonpath([file.parent for file in files.values()]) if files else ""
    count = Counter(file.with_suffix("") for file in set(files.values()))
    return {
        image: str((file if count[file.with_suffix("")] > 1 else file.with_suffix("")).relative_to(root)) + ".png"
        for image, file in files.items()
    }
