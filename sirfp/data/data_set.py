"""What a public data set is: one `DataSet` says all that sirfp needs to register, prepare and check it.

Those that sirfp knows are one file each in `sirfp/data/sets`. One of your own is an instance, registered by code that
is imported (`--import`):

    from sirfp.data import DataSet, Split, register_data_set

    register_data_set(DataSet(name="roads", ...))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sirfp.data.classes import IGNORE
from sirfp.errors import InputError

Reader = Callable[[Path], np.ndarray]
"""From a file to class indices: (H, W) 8-bit integers; raises InputError where the file is damaged."""
Follow = Callable[[Iterable, str, int], Iterable]
"""Passes items on and shows progress: (items, what they are, how many)."""
TASKS = ("segmentation", "detection", "classification")


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A file from which the label map of an image can be prepared.

    Attributes:
        path: like `Split.labels`.
        read: what reads it; None where `DataSet.gather` does, for all images at once.
    """

    path: str
    read: Reader | None


@dataclass(frozen=True, kw_only=True)
class Split:
    """A part of a data set; all paths are relative to the set's folder.

    Attributes:
        name: "train", "val" or "test".
        registered: its name in Detectron2's catalogs.
        count: images in the official release.
        images: pattern of the image files; its last `*` stands for the stem, `.*` at the end for any image format.
        labels: segmentation: the label map of an image, with {stem} and {parent}, the name of the image's folder;
            detection: the file of annotations; classification: "".
        raw: what label maps are prepared from; of several, the first that is there.
        beside: further files of an image, like `labels`, without which Detectron2 does not read the set.
        listed: a file of stems, where images of several splits share a folder.
        unsorted: classification: pattern of images that preparation moves to the folders of their classes.
        needed: whether the set is of no use without it.
    """

    name: str
    registered: str
    count: int
    images: str
    labels: str = ""
    raw: tuple[Raw, ...] = ()
    beside: tuple[str, ...] = ()
    listed: str = ""
    unsorted: str = ""
    needed: bool = True

    @property
    def image_folder(self) -> str:
        """The folder of all images; folders of classes or cities lie in it."""
        return os.path.dirname(self.images.partition("*")[0])


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set as it is published.

    Attributes:
        name: how `sirfp data` calls it.
        title: how papers call it.
        task: "segmentation", "detection" or "classification".
        folder: its place below the root of all data sets.
        splits: its parts.
        classes: how many.
        url: the official page.
        licence: in words.
        archives: what to download.
        names: of the classes; for segmentation all sets have them but those that Detectron2 registers.
        ids: the published label of each class, where label maps are published with others than 0, 1, ...
        ignore: the label of pixels that do not count.
        aliases: folders that archives unpack to, beside the right one.
        detectron2: whether Detectron2 registers it, below $DETECTRON2_DATASETS; otherwise sirfp does.
        class_folders: classification: returns the names of the folders of classes.
        gather: called by preparation first, with the set's folder and its splits: may write lists of images; returns
            what makes the label maps of some images, {image: function to class indices}.
        arrange: called by preparation in place of making label maps, with the set's folder and what shows progress:
            moves files; returns how many it moved, and how many were in place.

    Raises:
        InputError: fields contradict each other.
    """

    name: str
    title: str
    task: str
    folder: str
    splits: tuple[Split, ...]
    classes: int
    url: str
    licence: str
    archives: str
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    ignore: int = IGNORE
    aliases: tuple[str, ...] = ()
    detectron2: bool = False
    class_folders: Callable[[], tuple[str, ...]] | None = None
    gather: Callable[[Path, tuple[Split, ...]], Mapping[Path, Callable[[], np.ndarray]]] | None = None
    arrange: Callable[[Path, Follow], tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        self._require(self.task in TASKS, f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        self._require(bool(self.splits), "splits are needed")
        for field in ("names", "ids"):
            count = len(getattr(self, field))
            self._require(count in (0, self.classes), f"classes is {self.classes}, {field} has {count}")
        if self.task != "segmentation" or self.detectron2:
            return
        self._require(bool(self.names), "names of the classes are needed")
        for split in self.splits:
            where = f"split {split.name!r}: "
            fixed = os.path.dirname(split.images) == split.image_folder and "{" not in os.path.dirname(split.labels)
            self._require(fixed, f"{where}images lie in one folder, and their label maps in one")
            stem = os.path.basename(split.labels).startswith("{stem}.")
            self._require(stem, f"{where}a label map has the name of its image, so labels end in {{stem}}.png")

    def _require(self, holds: bool, what: str) -> None:
        if not holds:
            raise InputError(f"data set {self.name!r}: {what}")

    @property
    def origin(self) -> str:
        """Where it comes from, in one line."""
        return f"{self.url} ({self.archives}; {self.licence})"

    @property
    def prepared(self) -> bool:
        """Whether it needs preparation before training."""
        return self.arrange is not None or any(split.raw for split in self.splits)

    @property
    def row(self) -> str:
        """Its line of the table in docs/data.md."""
        names = [split.registered for split in self.splits]
        before, under, _ = os.path.commonprefix(names).rpartition("_")
        stem = before + under
        ends = ",".join(name.removeprefix(stem) for name in names)
        registered = f"{stem}{{{ends}}}" if len(names) > 1 else ends
        counts = ", ".join(f"{split.name} {split.count}" for split in self.splits)
        return f"| `{self.name}` | {self.task} | {self.classes} | {counts} | `{registered}` |"


DATA_SETS: dict[str, DataSet] = {}
"""All data sets by name, once `sirfp.data.descriptions` is imported."""


def register_data_set(known: DataSet) -> DataSet:
    """Adds a data set to those that sirfp knows; the same one again changes nothing.

    Raises:
        InputError: its name, or that of a split, stands for another set.
    """
    there = DATA_SETS.get(known.name)
    if there is not None and _content(there) != _content(known):
        raise InputError(f"data set {known.name!r} is registered already: {there.title}; choose another name")
    taken = {split.registered: one.name for one in DATA_SETS.values() if one is not there for split in one.splits}
    for split in known.splits:
        if split.registered in taken:
            raise InputError(f"data set {known.name!r}: {split.registered!r} is a split of {taken[split.registered]!r}")
    return DATA_SETS.setdefault(known.name, known)


def _content(known: DataSet) -> list[Any]:
    """What tells a set from another: all but functions, which are new when a file is run again."""
    splits = [(one.name, one.registered, one.count, one.images, one.labels, one.listed) for one in known.splits]
    labels = (known.classes, known.names, known.ids, known.ignore)
    return [known.title, known.task, known.folder, known.url, labels, splits]
