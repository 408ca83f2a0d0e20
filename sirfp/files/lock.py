"""One at a time: the lock of a folder that a program writes to."""

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
    """Holds the lock of a folder; yields the process number of a holder that was killed there, or None.

    The kernel lets go of the lock when its holder ends, however it ends; the file says who holds it. On a disk that has
    no locks it is not held, and the log says so.

    Args:
        folder: made where it is not there.
        who: what holds it, in words: "study".

    Raises:
        InputError: another one is at work there, or the folder cannot be written to.
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
                f"another {who} is at work in {folder} ({file.read().strip() or 'unknown'}); wait for it, stop it, or "
                "give this one another folder"
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
    """Has a forked process, such as one that reads data, not keep the lock when its parent is gone."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_let_go)
