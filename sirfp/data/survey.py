"""Counts the files of a data set and lists all faults that make it unusable, without raising errors.

The check has three levels:

- File names are compared for all images.
- The last bytes are read for at most `OPENED` images per split: truncated files lack the end mark of their format.
- Pixels are decoded for files without an end mark, and for `DECODED` other files per split.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sirfp.data.coco import check_coco
from sirfp.data.data_set import DataSet, Follow, Split
from sirfp.data.folders import check_image, has_end, image_size, read_label
from sirfp.data.splits import Labelled, files_of, folder_of, matching, misplaced
from sirfp.errors import InputError

DECODED = 300
OPENED = 50_000


@dataclass(frozen=True)
class Fault:
    """A fault of a split ("" for the whole set): kind, number of affected files, text about the first file."""

    split: str
    kind: str
    files: int
    what: str


@dataclass
class SplitState:
    """Numbers of existing images, of existing label maps and of decoded images of a split."""

    split: Split
    images: int = 0
    labels: int = 0
    decoded: int = 0


@dataclass
class Survey:
    """The result of checking a data set."""

    known: DataSet
    folder: Path
    states: list[SplitState] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """True if configs with this data set can run."""
        return not self.faults


def survey(
    known: DataSet,
    folder: Path | None = None,
    *,
    decoded: int | None = DECODED,
    partial: bool = False,
    follow: Follow = lambda items, what, total: items,
) -> Survey:
    """Checks a data set.

    Args:
        known: the data set.
        folder: folder of the data set; by default `known.folder` below the root of all data sets.
        decoded: number of images per split to decode; None for all, 0 to compare only names.
        partial: True to accept fewer images than in the official release.
        follow: yields items and shows progress.
    """
    result = Survey(known, folder_of(known) if folder is None else folder)
    if not result.folder.is_dir():
        result.states = [SplitState(split) for split in known.splits]
        elsewhere = misplaced(result.folder, known, known.splits[0])
        result.faults.append(Fault("", "missing", 1, _moved(result.folder, elsewhere, result.folder)))
        return result
    for split in known.splits:
        state = SplitState(split)
        result.states.append(state)
        result.faults += _check(result, state, decoded, partial, follow)
    return result


def _check(found: Survey, state: SplitState, decoded: int | None, partial: bool, follow: Follow) -> Iterator[Fault]:
    known, split, folder = found.known, state.split, found.folder
    files = files_of(folder, split, known.task)
    present = [one for one in files if one.image.is_file()] if split.listed else files
    state.images = len(present)
    if known.task == "classification":
        state.labels = len(files)  # the folder of an image is its label
        faults = [*_classes(found, split, {one.image.parent.name for one in files}, partial)]
        yield from faults
        if not present and faults:
            return
    if not present:
        yield from _absent(found, split)
        return
    if len(present) < len(files):
        lost = next(one.image for one in files if not one.image.is_file())
        yield Fault(split.name, "image missing", len(files) - len(present), f"{lost}: is listed and not there")
    if len(present) != split.count and not partial:
        more = f"{len(present)} of {split.count} images of the official release are in {folder}"
        how = "unpack the archives again, or accept what is there: --partial"
        yield Fault(split.name, "count", abs(split.count - len(present)), f"{more}; {how}")
    if known.task == "segmentation":
        yield from _labels(found, state, present)
        present = [one for one in present if one.labelled]
    if known.task == "detection":
        yield from _boxes(found, state, split, decoded)
        return
    chosen = _chosen(present, decoded)
    state.decoded = len(chosen)
    yield from _gathered(split, _read(known, split, chosen, follow))


def _absent(found: Survey, split: Split) -> Iterator[Fault]:
    folder = found.folder
    lacks_list = bool(split.listed) and not (folder / split.listed).is_file()
    if lacks_list and next(matching(folder, split.images), None) is not None:
        how = "unpack it" if found.known.gather is None else f"run: sirfp data prepare {found.known.name}"
        yield Fault(split.name, "list missing", 1, f"{folder / split.listed}: no such list of images; {how}")
    elif split.needed:
        elsewhere = misplaced(folder, found.known, split)
        yield Fault(split.name, "missing", split.count, _moved(folder / split.images, elsewhere, folder))


def _moved(place: Path, elsewhere: Path | None, right: Path) -> str:
    if elsewhere is None:
        return f"{place}: nothing there"
    if place.parent == elsewhere and place.name == elsewhere.name:
        return f"{place}: nothing there; {elsewhere} has such files: set DETECTRON2_DATASETS to {elsewhere.parent}"
    return f"{place}: nothing there; {elsewhere} has such files: move what is in it to {right}"


def _classes(found: Survey, split: Split, named: set[str], partial: bool) -> Iterator[Fault]:
    """Faults of the class folders; `named` are the names of folders that contain images."""
    known, root = found.known, found.folder / split.image_folder
    unsorted = sorted(matching(found.folder, split.unsorted)) if split.unsorted else []
    if unsorted:
        what = f"{unsorted[0]}: is in no folder of a class; run: sirfp data prepare {known.name}"
        yield Fault(split.name, "unprepared", len(unsorted), what)
    if not named or known.class_folders is None:
        return
    expected = set(known.class_folders())
    wrong, lacking = sorted(named - expected), sorted(expected - named)
    if wrong:
        yield Fault(split.name, "unknown class", len(wrong), f"{root / wrong[0]}: is no class of {known.title}")
    if lacking and not partial and not unsorted:
        what = f"{root / lacking[0]}: no images of this class; unpack its archive"
        yield Fault(split.name, "class missing", len(lacking), what)


def _labels(found: Survey, state: SplitState, present: list[Labelled]) -> Iterator[Fault]:
    known, split = found.known, state.split
    lacking = [one for one in present if not one.labelled]
    state.labels = len(present) - len(lacking)
    raw = [one for one in lacking if one.source is not None]
    if raw:
        what = f"{raw[0].label}: is not made yet; run: sirfp data prepare {known.name}"
        yield Fault(split.name, "unprepared", len(raw), what)
    lost = [one for one in lacking if one.source is None]
    if lost:
        image = lost[0].image.name
        yield Fault(split.name, "label missing", len(lost), f"{lost[0].label}: no label map for the image {image}")
    further = [path for one in present for path in one.beside if not path.is_file()]
    if further:
        yield Fault(split.name, "annotation missing", len(further), f"{further[0]}: is missing, Detectron2 reads it")
    if not split.listed:
        pattern = split.labels.format(stem="*", parent="*")
        expected = {one.label for one in present}
        extra = sorted(path for path in matching(found.folder, pattern) if path not in expected)
        if extra:
            yield Fault(split.name, "image missing", len(extra), f"{extra[0]}: no image for this label map")


def _boxes(found: Survey, state: SplitState, split: Split, decoded: int | None) -> Iterator[Fault]:
    annotations = found.folder / split.labels
    if not annotations.is_file():
        yield Fault(split.name, "label missing", 1, f"{annotations}: no such file of annotations")
        return
    if decoded == 0:
        return
    state.decoded = state.images if decoded is None else min(decoded, state.images)
    images = found.folder / split.image_folder
    try:
        check_coco(annotations, images, found.known.classes, decoded=state.decoded, flat_boxes=True)
    except InputError as error:
        yield Fault(split.name, "annotations", 1, str(error))
    else:
        state.labels = state.images


def _chosen(files: list[Labelled], decoded: int | None) -> list[Labelled]:
    if decoded is None:
        return files
    if not decoded:
        return []
    opened = files[:: max(1, -(-len(files) // OPENED))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        doubtful = {one for one, whole in zip(opened, pool.map(_ended, opened), strict=True) if not whole}
    sample = set(files[:: max(1, -(-len(files) // decoded))])
    return [one for one in files if one in sample or one in doubtful]


def _ended(one: Labelled) -> bool:
    return all(has_end(path) for path in (one.image, one.label) if path is not None)


def _read(known: DataSet, split: Split, files: list[Labelled], follow: Follow) -> list[tuple[str, str]]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            read = pool.map(lambda one: _read_one(known, one), files)
            return [fault for faults in follow(read, f"{known.name} {split.name}", len(files)) for fault in faults]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _read_one(known: DataSet, one: Labelled) -> list[tuple[str, str]]:
    """Faults of an image and its label map: a list of (kind, text)."""
    faults = []
    try:
        check_image(one.image)
    except InputError as error:
        faults.append(("unreadable", str(error)))
    if one.label is None:
        return faults
    try:
        pixels = read_label(one.label)
    except InputError as error:
        return [*faults, ("unreadable", str(error))]
    with suppress(InputError):
        size = image_size(one.image)
        if size != pixels.shape[::-1]:
            height, width = pixels.shape
            wrong = f"{one.label}: is {width} x {height} pixels, its image is {size[0]} x {size[1]}"
            faults.append(("size", wrong))
    wrong = pixels[((pixels < 0) | (pixels >= known.classes)) & (pixels != known.ignore)]
    if wrong.size:
        allowed = f"allowed are 0..{known.classes - 1} and {known.ignore} (ignored)"
        faults.append(("label", f"{one.label}: holds label {int(wrong[0])}; {allowed}"))
    return faults


def _gathered(split: Split, found: list[tuple[str, str]]) -> list[Fault]:
    counts, first = Counter(kind for kind, _ in found), dict[str, str]()
    for kind, what in found:
        first.setdefault(kind, what)
    return [Fault(split.name, kind, counts[kind], first[kind]) for kind in counts]
