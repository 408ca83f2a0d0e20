"""Checks that hold for many keys: numbers are finite, lists hold values of the right type, proposal files are safe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..data.pixels import LARGEST_SIDE
from ..errors import InputError
from ..files.nearby import nearby
from ..files.pickles import read_arrays

OF_TEXTS = {
    "SIRFP": ("METRICS", "IGNORE", "PARTITIONS", "HOOKS"),
    "DATASETS": ("TRAIN", "TEST"),
    "DATASETS.FOLDER": ("CLASSES",),
    "DATASETS.IMAGES": ("SPLITS",),
    "MODEL.TIMM": ("OUT_FEATURES",),
}
"""Keys whose value is a list of texts; yacs only checks that the value is a list."""
OF_SIZES = {"SIRFP": ("INPUT_SIZE",)}
"""Keys whose value is [height, width] in pixels; 0 means not given."""


def check_values(cfg: CfgNode) -> None:
    """Checks that numbers are finite and that lists of texts and sizes hold values of the right type.

    Raises:
        InputError: a value is wrong; the message names its key.
    """
    for key, value in leaves(cfg):
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise InputError(f"{key} must be finite, got {value}")
    for key, value in _listed(cfg, OF_TEXTS):
        if isinstance(value, str):
            raise InputError(f"{key} is a list of names; write ['{value}']")
        odd = next((entry for entry in value if not isinstance(entry, str)), None)
        if odd is not None:
            raise InputError(f"{key} must be a list of texts, got {odd!r:.80} in it")
    for key, value in _listed(cfg, OF_SIZES):
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in value)
        if len(value) != 2 or not whole or not all(0 <= side <= LARGEST_SIDE for side in value):
            raise InputError(f"{key} must be [height, width] in pixels, up to {LARGEST_SIDE}, got {value!r:.80}")


def check_proposals(cfg: CfgNode) -> None:
    """Checks files of proposals, which are pickles, because Detectron2 reads them without any check.

    Raises:
        InputError: a file is missing, or holds objects other than arrays and plain containers.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    for key in ("PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"):
        for file in cfg.DATASETS[key]:
            if not Path(file).is_file():
                raise InputError(
                    f"DATASETS.{key}: there is no file {file}{nearby(file)}; proposals are read from local files"
                )
            read_arrays(Path(file))


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the full name of every key of a config, and its value."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _listed(cfg: CfgNode, keys: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Any]]:
    for place, names in keys.items():
        node = cfg
        for part in place.split("."):
            node = node[part]
        yield from ((f"{place}.{name}", node[name]) for name in names)
