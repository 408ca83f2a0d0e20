"""Folders of data sets."""

import os
from pathlib import Path


def datasets_root() -> Path:
    """`$SIRFP_DATASETS`, else Detectron2's `$DETECTRON2_DATASETS`, else `datasets` in the current folder."""
    places = (os.environ.get(name) for name in ("SIRFP_DATASETS", "DETECTRON2_DATASETS"))
    return Path(next(filter(None, places), "datasets")).expanduser()


def detectron2_root() -> Path:
    """The folder of the sets that Detectron2 registers: `$DETECTRON2_DATASETS`, else `datasets` in the current one."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
