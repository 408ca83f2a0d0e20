"""Prepares data sets for training: label maps of class indices, lists of splits, folders of classes.

Each file is written under a temporary name and then renamed, so that files under their final names are complete. If a
preparation is killed, run it again: it makes the remaining files, and the result is the same as without the kill.
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
    """A label map to make: `make` returns the labels of `image`; they are written to `target`."""

    image: Path
    target: Path
    make: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Prepared:
    """Number of files that a preparation made, and number of complete files that it kept."""

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
    """Prepares a data set; does nothing if the set needs no preparation.

    Args:
        known: the data set.
        folder: folder of the data set; by default `known.folder` below the root of all data sets.
        workers: number of processes; one per CPU core by default.
        force: True to make complete files again.
        follow: yields items and shows progress.

    Raises:
        InputError: source files are missing, or files cannot be read or written. The message names the first such
            file; all other files are prepared.
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
            f"{lacking[0]}: is missing; {len(lacking)} label maps of {known.title} need files like this one, which "
            f"come from {known.url}"
        )
    return _some(done, known, folder)


def _some(done: Prepared, known: DataSet, folder: Path) -> Prepared:
    if not done.made + done.kept and known.prepared:
        raise InputError(f"{folder}: has no images whose labels could be prepared; run: sirfp data check {known.name}")
    return done


def _jobs(
    known: DataSet, folder: Path, gathered: Mapping[Path, Callable[[], np.ndarray]]
) -> tuple[list[Job], list[Path]]:
    """Lists the label maps to make, and the missing source files of label maps that cannot be made."""
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
                    "a process was killed, perhaps out of memory; run the command again with --workers 1"
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    failed = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} label maps could not be made; the first: {failed[0]}")
    return Prepared(sum(outcomes), len(jobs) - sum(outcomes))


def _end_with_parent() -> None:
    """Makes a worker process ignore Ctrl-C, which the parent handles, and exit when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def attend() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=attend, daemon=True).start()


def _convert(job: Job, force: bool) -> bool | str:
    """Makes a label map.

    Returns:
        True if the label map was made, False if a complete one exists, or a message if it cannot be made.
    """
    from PIL import Image

    try:
        size = image_size(job.image)
        if not force and _whole(job.target, size):
            return False
        labels = job.make()
        if sorted(labels.shape) != sorted(size):  # sorted, because EXIF orientation may exchange width and height
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
