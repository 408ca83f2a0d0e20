"""Describes a public data set: a `DataSet` has all data that sirfp needs to register, prepare and check the set.

Each data set of sirfp has a file in `sirfp/data/sets`. To add your own data set, register an instance in a file that
you pass by `--import`:

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
"""Function that reads a file as class indices, (H, W) 8-bit integers; raises InputError if the file is damaged."""
Follow = Callable[[Iterable, str, int], Iterable]
"""Function that yields items and shows progress; arguments: items, their name, their number."""
TASKS = ("segmentation", "detection", "classification")


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A file from which the label map of an image can be prepared.

    Attributes:
        path: pattern of the path, in the format of `Split.labels`.
        read: function that reads the file; None if `DataSet.gather` reads one file for all images.
    """

    path: str
    read: Reader | None


@dataclass(frozen=True, kw_only=True)
class Split:
    """A part of a data set; all paths are relative to the set's folder.

    Attributes:
        name: "train", "val" or "test".
        registered: name in Detectron2's catalogs.
        count: number of images in the official release.
        images: pattern of the image files. The last `*` matches the stem; `.*` at the end matches any image format.
        labels: segmentation: pattern of the label map of an image, where {stem} is the image's stem and {parent} the
            name of the image's folder; detection: the file of annotations; classification: "".
        raw: possible sources of a label map; preparation uses the first that exists.
        beside: patterns, in the format of `labels`, of further files that Detectron2 needs for each image.
        listed: file that lists the stems of the split; "" if the split has a separate folder.
        unsorted: classification: pattern of images that preparation moves to the folders of their classes.
        needed: True if the data set is not usable without this split.
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
        """The folder of all images; may have subfolders of classes or cities."""
        return os.path.dirname(self.images.partition("*")[0])


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A published data set.

    Attributes:
        name: name in the commands of `sirfp data`.
        title: name in papers.
        task: "segmentation", "detection" or "classification".
        folder: folder of the data set, relative to the root of all data sets.
        splits: splits of the data set.
        classes: number of classes.
        url: official page.
        licence: text on the licence.
        archives: text on the files to download.
        names: names of the classes. Required for segmentation, unless Detectron2 registers the set.
        ids: published label of each class; () if the labels are 0, 1, ...
        ignore: label of ignored pixels.
        aliases: wrong folders to which archives may have been unpacked.
        detectron2: True if Detectron2 registers the set, below $DETECTRON2_DATASETS; otherwise sirfp registers it.
        class_folders: classification: function that returns the names of the class folders.
        gather: function (folder of the set, splits) that preparation calls first. May write lists of images. Returns
            {image: function that makes its class indices} for some images.
        arrange: function (folder of the set, progress function) that preparation calls instead of making label maps.
            Moves files. Returns the number of moved files and the number of files that were already in place.

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
        """Source of the data set, in one line."""
        return f"{self.url} ({self.archives}; {self.licence})"

    @property
    def prepared(self) -> bool:
        """True if the data set needs preparation before training."""
        return self.arrange is not None or any(split.raw for split in self.splits)

    @property
    def row(self) -> str:
        """The data set's line in the table in docs/data.md."""
        names = [split.registered for split in self.splits]
        before, under, _ = os.path.commonprefix(names).rpartition("_")
        stem = before + under
        ends = ",".join(name.removeprefix(stem) for name in names)
        registered = f"{stem}{{{ends}}}" if len(names) > 1 else ends
        counts = ", ".join(f"{split.name} {split.count}" for split in self.splits)
        return f"| `{self.name}` | {self.task} | {self.classes} | {counts} | `{registered}` |"


DATA_SETS: dict[str, DataSet] = {}
"""{name: data set}; importing `sirfp.data.descriptions` adds all sets of sirfp."""


def register_data_set(known: DataSet) -> DataSet:
    """Registers a data set by its name; registering an equal data set again has no effect.

    Raises:
        InputError: the name of the data set or of a split belongs to another data set.
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
    """Fields that identify a data set, without functions: functions differ each time a file is executed."""
    splits = [(one.name, one.registered, one.count, one.images, one.labels, one.listed) for one in known.splits]
    labels = (known.classes, known.names, known.ids, known.ignore)
    return [known.title, known.task, known.folder, known.url, labels, splits]
