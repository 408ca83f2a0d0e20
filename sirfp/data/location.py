"""Where data sets lie."""

import os
from pathlib import Path


def datasets_root() -> Path:
    """`$SIRFP_DATASETS`, else Detectron2's `$DETECTRON2_DATASETS`, else the folder `datasets` here."""
    places = (os.environ.get(name) for name in ("SIRFP_DATASETS", "DETECTRON2_DATASETS"))
    return Path(next(filter(None, places), "datasets")).expanduser()


def detectron2_root() -> Path:
    """Where Detectron2 looks for the sets that it registers itself: `$DETECTRON2_DATASETS`, else `datasets` here."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()
