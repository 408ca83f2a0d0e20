"""Finds the files of a split of a data set, also if an archive was unpacked into the wrong folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from sirfp.data.data_set import DataSet, Reader, Split
from sirfp.data.folders import IMAGE_SUFFIXES, read_stems
from sirfp.data.location import datasets_root, detectron2_root
from sirfp.errors import InputError

DEPTH = 4
"""Number of levels of folders below a set's folder that are searched for misplaced files."""
WIDTH = 100
"""Largest number of subfolders per folder that are searched for misplaced files."""


@dataclass(frozen=True)
class Labelled:
    """An image and the path of its label map; None if the data set has no label maps per image."""

    image: Path
    label: Path | None
    raw: tuple[tuple[Path, Reader | None], ...] = ()
    beside: tuple[Path, ...] = ()

    @property
    def labelled(self) -> bool:
        """True if the label map exists."""
        return self.label is not None and self.label.is_file()

    @property
    def source(self) -> tuple[Path, Reader | None] | None:
        """The file from which the label map can be prepared: the first entry of `raw` that exists."""
        return next(((path, read) for path, read in self.raw if path.is_file()), None)


def folder_of(known: DataSet) -> Path:
    """The folder of a data set."""
    return (detectron2_root() if known.detectron2 else datasets_root()) / known.folder


def files_of(folder: Path, split: Split, task: str) -> list[Labelled]:
    """Lists the images of a split, sorted, with the paths of their label maps.

    If the split has a list of images, some of the listed images may be missing.
    """
    before, after = _affixes(split.images)
    if split.listed:
        images = [folder / os.path.dirname(split.images) / f"{before}{stem}{after}" for stem in stems(folder, split)]
    else:
        images = sorted(matching(folder, split.images))
    if task != "segmentation":
        return [Labelled(image, None) for image in images]

    def named(image: Path, template: str) -> Path:
        stem = image.stem if after == ".*" else image.name[len(before) : len(image.name) - len(after)]
        return folder / template.format(stem=stem, parent=image.parent.name)

    return [
        Labelled(
            image,
            named(image, split.labels),
            tuple((named(image, raw.path), raw.read) for raw in split.raw),
            tuple(named(image, further) for further in split.beside),
        )
        for image in images
    ]


def stems(folder: Path, split: Split) -> list[str]:
    """The stems in a split's list of images, in the order of the list; empty if the split has no list."""
    with suppress(InputError):
        return read_stems(folder / split.listed)
    return []


def matching(folder: Path, pattern: str) -> Iterator[Path]:
    """Yields files that match a pattern, in arbitrary order, without hidden files."""
    where, _, name = pattern.rpartition("/")
    for place in folder.glob(where):
        if not place.is_dir():
            continue
        for entry in os.scandir(place):
            known = name.endswith(".*") and os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES
            if not entry.name.startswith(".") and fnmatchcase(entry.name, name) and not known:
                yield Path(entry.path)


def written(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, then renames the file to `path`.

    Thus `path` is never an incomplete file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    write(beside)
    os.replace(beside, path)


def misplaced(folder: Path, known: DataSet, split: Split) -> Path | None:
    """Finds a wrong folder that holds the files of a split: above or below `folder`, or with another name."""
    root = folder.parent
    places = [root / alias for alias in known.aliases]
    if folder.is_dir():
        places = [*_below(folder, DEPTH), *places]
    elif split.images.split("*")[0].count("/") > 1 or known.detectron2:
        places.append(root)
    for place in places:
        for depth in (place, *(_below(place, 2) if place not in (root, folder) and place.is_dir() else ())):
            if depth != folder and next(matching(depth, split.images), None) is not None:
                return depth
    return None


def _below(folder: Path, depth: int) -> Iterator[Path]:
    level = [folder]
    for _ in range(depth):
        level = [
            Path(entry.path)
            for place in level
            for entry in sorted(os.scandir(place), key=lambda entry: entry.name)[:WIDTH]
            if entry.is_dir() and not entry.name.startswith(".")
        ]
        yield from level


def _affixes(pattern: str) -> tuple[str, str]:
    before, _, after = os.path.basename(pattern).partition("*")
    return before, after
