"""The lock of an output folder, so that only one program at a time writes to the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import InputError

FILE = "lock"

_held: set[IO[str]] = set()


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], who: str) -> Iterator[int | None]:
    """Locks a folder while the context is active; yields the process id of an earlier holder that was killed, or None.

    The lock file contains the id of the process. The kernel releases the lock when the process ends, even if the
    process is killed. If the file system does not support locks, a warning is logged and the folder is not locked.

    Args:
        folder: the folder; created if missing.
        who: the kind of program that takes the lock, for messages, e.g. "study".

    Raises:
        InputError: another program holds the lock, or the folder cannot be written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / FILE, "a+")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise InputError(f"cannot write to the {who}'s folder {folder}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                logging.getLogger(__name__).warning(f"{folder} cannot be locked: {error.strerror}")
                yield None
                return
            file.seek(0)
            raise InputError(
                f"another {who} is running in {folder} ({file.read().strip() or 'unknown'}); wait until it ends, stop "
                "it, or choose another folder"
            ) from None
        file.seek(0)
        before = re.match(r"process (\d+)", file.read())
        file.truncate(0)
        try:
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except OSError as error:
            raise InputError(f"cannot write to the {who}'s folder {folder}: {error.strerror}") from None
        _held.add(file)
        try:
            yield int(before[1]) if before else None
        finally:
            _held.discard(file)
            file.truncate(0)


def _let_go() -> None:
    """Closes inherited lock files in a forked process, such as a data loader's worker.

    Otherwise the forked process would still hold the lock after its parent has ended.
    """
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_let_go)
