"""The end of a message on a file or folder that is missing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import near


def nearby(path: str | os.PathLike[str], endings: Iterable[str] = ()) -> str:
    """Returns " (did you mean X?)" with names in the same folder, or "; the folder X does not exist either", or "".

    Args:
        path: what is missing.
        endings: suffixes of files, such as ".yaml", that are suggested; none for all.
    """
    path, endings = Path(path), tuple(endings)
    folder = path.parent
    if not folder.is_dir():
        return f"; the folder {folder} does not exist either"
    try:
        names = [name for name in os.listdir(folder) if not endings or name.endswith(endings)]
    except OSError:  # not readable
        return ""
    return near(path.name, names)
