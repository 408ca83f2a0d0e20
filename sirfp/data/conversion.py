"""Converts published label maps to label maps for training: class indices, and 255 for ignored pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sirfp.data.classes import lookup
from sirfp.data.folders import read_label
from sirfp.errors import InputError


@dataclass(frozen=True)
class PublishedIds:
    """The published label ids of a data set. Calling it with the path of a label map returns class indices.

    Attributes:
        trained: id of each class, in the order of the classes.
        ids: all valid ids; ids that are not in `trained` are converted to 255.
    """

    trained: tuple[int, ...]
    ids: range

    def __call__(self, path: Path) -> np.ndarray:
        return self.to_classes(path, read_label(path))

    def to_classes(self, path: Path, pixels: np.ndarray) -> np.ndarray:
        """Converts ids to class indices.

        Args:
            path: file of the ids, for messages.
            pixels: (H, W) integers.

        Returns:
            (H, W) 8-bit integers.

        Raises:
            InputError: an id is not in `ids`.
        """
        table = lookup(self.trained, self.ids)
        known = (pixels >= 0) & (pixels < len(table))
        labels = table[np.where(known, pixels, np.intp(len(table) - 1))]
        wrong = pixels[labels < 0]
        if wrong.size:
            what = f"holds label {int(wrong[0])}, which the data set does not have"
            raise InputError(f"{path}: {what}; get the file again")
        return labels.astype(np.uint8)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); get the file again") from error


def read_mat(path: Path) -> dict[str, Any]:
    """Reads a MATLAB file as {name: array}.

    Raises:
        InputError: the file cannot be read.
    """
    from scipy.io import loadmat

    try:
        return loadmat(path)
    except Exception as error:  # loadmat raises many kinds on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as a .mat file ({reason}); get the file again") from error


def mat_field(path: Path, content: dict[str, Any], name: str) -> np.ndarray:
    """Returns the label map `name` of a MATLAB file: (H, W) 64-bit integers.

    Raises:
        InputError: the file has no label map of this name.
    """
    pixels = content.get(name)
    if pixels is None or pixels.ndim != 2 or pixels.dtype.kind not in "iuf":
        raise InputError(f"{path}: has no label map {name!r}; get the file again")
    return pixels.astype(np.int64)
