"""Writes a file completely or not at all: writes a temporary file in the same folder, then renames it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a temporary file in the folder of `path`; renames the file to `path` at the end.

    Raises:
        InputError: the folder cannot be written to or the disk is full; the temporary file is then removed.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    try:
        yield Path(beside)
        with open(beside, "rb+") as written:
            os.fsync(written.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        Path(beside).unlink(missing_ok=True)


def remove_parts(folder: str | os.PathLike) -> None:
    """Removes the temporary files that killed programs left in a folder; no program may be writing to the folder."""
    for part in Path(folder).glob(".*.part"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Syncs a folder to disk, so that a renamed file survives a crash; does nothing if folders cannot be synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
