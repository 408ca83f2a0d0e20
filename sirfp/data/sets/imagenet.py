"""ImageNet's 1000 classes (ILSVRC 2012; Russakovsky et al., 2015).

Validation images are published in one folder. Preparation moves each image to the folder of its class, which is the
layout of the training images.
"""

from __future__ import annotations

import csv
import os
from functools import cache
from pathlib import Path

from sirfp.data.data_set import DataSet, Follow, Split, register_data_set
from sirfp.data.splits import matching
from sirfp.errors import InputError

GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
DEVKIT = "ILSVRC2012_devkit_t12"
KAGGLE = "LOC_val_solution.csv"
UNSORTED = "val/*.JPEG"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"


@cache
def synsets() -> tuple[str, ...]:
    """WordNet ids of the 1000 classes, in the order of the class indices, which is the sorted order."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo().label_names())


def sort_validation(folder: Path, follow: Follow) -> tuple[int, int]:
    """Moves the validation images to class folders.

    Returns:
        The number of moved images, and the number of images that were already in place.

    Raises:
        InputError: the labels are missing or do not fit the images; no image is moved.
    """
    flat = sorted(matching(folder, UNSORTED))
    placed = sum(1 for _ in matching(folder, "val/*/*.JPEG"))
    if not flat:
        return 0, placed
    labels = read_validation_labels(folder)
    unknown = [path for path in flat if path.stem not in labels]
    if unknown:
        raise InputError(f"{unknown[0]}: the labels of the validation images do not name it; remove or rename it")
    for wnid in sorted({labels[path.stem] for path in flat}):
        (folder / "val" / wnid).mkdir(exist_ok=True)
    for path in follow(flat, "validation images", len(flat)):
        os.replace(path, path.parent / labels[path.stem] / path.name)
    return len(flat), placed


def read_validation_labels(folder: Path) -> dict[str, str]:
    """Reads {stem of a validation image: WordNet id} from the development kit, Kaggle's table or a list of ids.

    Raises:
        InputError: all three are missing, or the file is damaged.
    """
    places = [folder / DEVKIT, folder / "devkit", folder]
    truth = next((place / GROUND_TRUTH for place in places if (place / GROUND_TRUTH).is_file()), None)
    try:
        if truth is not None:
            found = _numbered(_from_devkit(truth))
        elif (folder / KAGGLE).is_file():
            with (folder / KAGGLE).open(newline="", encoding="utf-8") as file:
                found = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
        elif (folder / SYNSETS).is_file():
            found = _numbered((folder / SYNSETS).read_text(encoding="utf-8").split())
        else:
            raise InputError(
                f"{folder / DEVKIT}: no such folder; the classes of the validation images come from it "
                f"(ILSVRC2012_devkit_t12.tar.gz), from {KAGGLE} or from {SYNSETS}"
            )
    except (OSError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}: the labels of the validation images cannot be read ({error}); get them again"
        ) from error
    known = set(synsets())
    wrong = [wnid for wnid in found.values() if wnid not in known]
    if wrong or not found:
        raise InputError(f"{folder}: {(wrong or ['nothing'])[0]!r} is no class of ILSVRC 2012; get the labels again")
    return found


def _from_devkit(truth: Path) -> list[str]:
    from scipy.io import loadmat

    table = loadmat(truth.parent / "meta.mat", squeeze_me=True)["synsets"]
    wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    return [wnids[int(line)] for line in truth.read_text(encoding="ascii").split()]


def _numbered(wnids: list[str]) -> dict[str, str]:
    return {f"ILSVRC2012_val_{number:08d}": wnid for number, wnid in enumerate(wnids, 1)}


IMAGENET = register_data_set(
    DataSet(
        name="imagenet",
        title="ImageNet (ILSVRC 2012)",
        task="classification",
        folder="imagenet",
        splits=(
            Split(name="train", registered="imagenet_train", count=1281167, images="train/*/*.JPEG"),
            Split(name="val", registered="imagenet_val", count=50000, images="val/*/*.JPEG", unsorted=UNSORTED),
        ),
        classes=1000,
        url="https://www.image-net.org/download.php",
        licence="non-commercial research only; registration needed",
        archives="ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz",
        aliases=("ILSVRC2012", "ILSVRC", "ImageNet", "imagenet-1k"),
        class_folders=synsets,
        arrange=sort_validation,
    )
)
