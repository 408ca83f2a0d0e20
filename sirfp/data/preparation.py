"""Makes what a data set needs before training: label maps of class indices, lists of splits, folders of classes.

A file is written beside its place under a fixed name and then renamed, so what is in place is whole. A preparation
that was killed can be run again: it does what is left, with the same result as one that was not killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sirfp.data.data_set import DataSet, Follow
from sirfp.data.folders import image_size
from sirfp.data.splits import files_of, folder_of, written
from sirfp.errors import InputError

PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Job:
    """One label map to make: of `image`, by calling `make`, at `target`."""

    image: Path
    target: Path
    make: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Prepared:
    """How many files a preparation made, and how many were there before, and whole."""

    made: int
    kept: int


def prepare(
    known: DataSet,
    folder: Path | None = None,
    *,
    workers: int | None = None,
    force: bool = False,
    follow: Follow = lambda items, what, total: items,
) -> Prepared:
    """Prepares a data set; what needs no preparation is left as it is.

    Args:
        known: the set.
        folder: its folder; by default its place below the root of all data sets.
        workers: processes; as many as processors by default.
        force: whether to make files again that are whole.
        follow: passes items on and shows progress.

    Raises:
        InputError: there is nothing to prepare from, or files cannot be read or written; the message names the
            first of them, and all others are prepared.
    """
    folder = folder_of(known) if folder is None else folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {known.title} comes from {known.origin}")
    try:
        if known.arrange is not None:
            return _some(Prepared(*known.arrange(folder, follow)), known, folder)
        gathered = known.gather(folder, known.splits) if known.gather is not None else {}
        jobs, lacking = _jobs(known, folder, gathered)
        done = _run(jobs, workers, force, follow)
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from error
    if lacking:
        raise InputError(
            f"{lacking[0]}: is missing, and {len(lacking)} label maps of {known.title} are to be prepared from such "
            f"files; they come from {known.url}"
        )
    return _some(done, known, folder)


def _some(done: Prepared, known: DataSet, folder: Path) -> Prepared:
    if not done.made + done.kept and known.prepared:
        raise InputError(f"{folder}: has no images to prepare labels of; run: sirfp data check {known.name}")
    return done


def _jobs(
    known: DataSet, folder: Path, gathered: Mapping[Path, Callable[[], np.ndarray]]
) -> tuple[list[Job], list[Path]]:
    """The label maps to make, and files that are missing for others."""
    jobs: list[Job] = []
    lacking: list[Path] = []
    for split in known.splits:
        for found in files_of(folder, split, known.task) if split.raw else ():
            if found.label is None:
                continue
            path, read = found.source or (None, None)
            if found.image in gathered:
                jobs.append(Job(found.image, found.label, gathered[found.image]))
            elif path is not None and read is not None:
                jobs.append(Job(found.image, found.label, partial(read, path)))
            elif split.needed and not found.label.is_file():
                lacking.append(found.raw[0][0])
    return jobs, lacking


def _run(jobs: list[Job], workers: int | None, force: bool, follow: Follow) -> Prepared:
    if not jobs:
        return Prepared(0, 0)
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    work = partial(_convert, force=force)
    if workers == 1:
        outcomes = list(follow(map(work, jobs), "label maps", len(jobs)))
    else:
        chunk = max(1, min(16, len(jobs) // (4 * workers)))
        with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
            try:
                outcomes = list(follow(pool.map(work, jobs, chunksize=chunk), "label maps", len(jobs)))
            except BrokenProcessPool:
                raise InputError(
                    "a process was killed, perhaps for want of memory; run it again, --workers 1"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    failed = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} label maps could not be made; the first: {failed[0]}")
    return Prepared(sum(outcomes), len(jobs) - sum(outcomes))


def _end_with_parent() -> None:
    """Has a worker ignore Ctrl-C, which its parent handles, and end when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def attend() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=attend, daemon=True).start()


def _convert(job: Job, force: bool) -> bool | str:
    """Makes a label map: True where it did, False where there was a whole one, or the reason why it could not."""
    from PIL import Image

    try:
        size = image_size(job.image)
        if not force and _whole(job.target, size):
            return False
        labels = job.make()
        if sorted(labels.shape) != sorted(size):  # width and height exchanged by EXIF orientation: the check decides
            height, width = labels.shape
            raise InputError(
                f"{job.image}: is {size[0]} x {size[1]} pixels, its labels are {width} x {height}; get both again"
            )
        written(job.target, lambda path: Image.fromarray(labels).save(path, "PNG"))
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or job.target}: {error.strerror or error}"
    return True


def _whole(path: Path, size: tuple[int, int]) -> bool:
    with suppress(OSError, InputError), path.open("rb") as file:
        file.seek(-len(PNG_END), os.SEEK_END)
        return file.read() == PNG_END and sorted(image_size(path)) == sorted(size)
    return False
