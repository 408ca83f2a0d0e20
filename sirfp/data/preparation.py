"""Makes what a data set needs before training: label maps of class indices, lists of splits, folders of classes.

A file is written beside its place under a fixed name and then renamed, so what is in place is whole. Whatever is
killed can be run again: it does what is left, and ends as if it had not been killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sirfp.data.conversion import READERS
from sirfp.data.descriptions import DataSet
from sirfp.data.folders import image_size
from sirfp.data.splits import files_of, folder_of, written
from sirfp.errors import InputError

Follow = Callable[[Iterable, str, int], Iterable]
PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Job:
    """One label map to make: of `image`, by calling `make`, at `target`."""

    image: Path
    target: Path
    make: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Prepared:
    """What a preparation did: how many files it made, and how many were whole before."""

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
        folder: its folder; where the set belongs by default.
        workers: processes; as many as processors by default.
        force: whether to make again what is whole.
        follow: passes items on and shows progress.

    Raises:
        InputError: there is nothing to prepare from, or files cannot be read or written: all others are
            prepared, and the first is named.
    """
    folder = folder_of(known) if folder is None else folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {known.title} comes from {known.origin}")
    try:
        if known.name == "imagenet":
            from sirfp.data.imagenet import sort_validation

            return _some(Prepared(*sort_validation(folder, follow)), known, folder)
        merged: dict[Path, Callable[[], np.ndarray]] = {}
        if known.name == "pascal_context":
            from sirfp.data.pascal_context import list_splits, merged_labels, read_merged

            content = read_merged(folder)
            list_splits(folder, known.splits, content)
            merged = merged_labels(folder, content) if content else {}
        jobs, lacking = _jobs(known, folder, merged)
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
    if not done.made + done.kept and any(split.raw or known.name == "imagenet" for split in known.splits):
        raise InputError(f"{folder}: has no images to prepare labels of; run: sirfp data check {known.name}")
    return done


def _jobs(known: DataSet, folder: Path, merged: dict[Path, Callable[[], np.ndarray]]) -> tuple[list[Job], list[Path]]:
    """What is to be made, and what is missing for the rest."""
    jobs, lacking = [], []
    for split in known.splits:
        for found in files_of(folder, split, known.task) if split.raw else ():
            if found.image in merged:
                jobs.append(Job(found.image, found.label, merged[found.image]))
            elif found.source is not None and found.source[1] in READERS:
                path, reader = found.source
                jobs.append(Job(found.image, found.label, partial(READERS[reader], path)))
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
    """Leaves Ctrl-C to the parent of this worker, and ends it where the parent was killed: it would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def attend() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=attend, daemon=True).start()


def _convert(job: Job, force: bool) -> bool | str:
    """Whether a label map was made, or why it could not be."""
    from PIL import Image

    try:
        size = image_size(job.image)
        if not force and _whole(job.target, size):
            return False
        labels = job.make()
        if sorted(labels.shape) != sorted(size):  # a turned photograph is for the check to judge
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
