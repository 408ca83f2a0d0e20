"""Hides a folder `datasets/`, where Detectron2 looks for data, from libraries that look for a package `datasets`."""

from __future__ import annotations

import importlib.util
import sys


def hide_folder_of_data() -> None:
    """Makes `import datasets` fail if it would only find a folder of that name; call it before `import transformers`.

    Python takes any folder on its path for a package. transformers and accelerate then take it for Hugging Face's
    library and fail at its first use.
    """
    found = importlib.util.find_spec("datasets")
    if found is not None and found.origin is None:  # there is no code, not even an __init__.py
        sys.modules["datasets"] = None  # type: ignore[assignment]
