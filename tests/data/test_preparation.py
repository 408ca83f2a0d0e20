"""Preparing public data sets: label ids become those of training, and a killed preparation can be repeated."""

import multiprocessing
import os
import select
import shutil
import signal
import time

import numpy as np
import pytest
from miniature_sets import (
    MAKERS,
    SIZE,
    WNIDS,
    cityscapes,
    coco_stuff_10k,
    content,
    imagenet,
    pascal_context,
    repeat_to_image,
)
from PIL import Image

from sirfp.data.descriptions import DATA_SETS
from sirfp.data.folders import read_label
from sirfp.data.preparation import prepare
from sirfp.data.survey import survey
from sirfp.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")
V = 255
TRAINED = {
    "cityscapes": ("gtFine/val/lindau/lindau_000001_000019_gtFine_labelTrainIds.png", (V, 0, 1, 5, V, V, 16, 18)),
    "ade20k": ("annotations_detectron2/training/ADE_train_00000003.png", (V, 0, 1, 148, 149)),
    "coco_stuff_10k": ("annotations_detectron2/COCO_train2014_000000000009.png", (V, 0, 10, 11, 79, 80, 170)),
    "pascal_context": ("annotations_detectron2/2008_000008.png", (V, V, 0, 1, 49, 58, V)),
}
"""A prepared label map, and what the label ids of its miniature become: by the official tables, written out here."""
VARIANTS = {
    "coco_stuff_10k": (coco_stuff_10k, ".png"),
    "pascal_context": (pascal_context, "trainval.mat"),
}


def run(name, folder, **options):
    return prepare(DATA_SETS[name], folder, workers=options.pop("workers", 1), **options)


@pytest.mark.parametrize("name", TRAINED)
def test_label_ids_become_those_of_training(name, tmp_path):
    folder = MAKERS[name](tmp_path)
    done = run(name, folder)
    path, expected = TRAINED[name]
    assert np.array_equal(read_label(folder / path), repeat_to_image(expected))
    assert done.made == {"cityscapes": 8}.get(name, 5) and done.kept == 0
    if name in VARIANTS:
        maker, raw = VARIANTS[name]
        other = maker(tmp_path / "other", raw)
        run(name, other)
        assert np.array_equal(read_label(other / path), repeat_to_image(expected))


def test_polygons_are_drawn_in_order(tmp_path):
    folder = cityscapes(tmp_path, raw="")
    run("cityscapes", folder)
    labels = read_label(folder / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png")
    expected = np.full((SIZE[1], SIZE[0]), V)
    expected[:, :4], expected[:2, :2], expected[:, 4:7] = 0, 13, 18
    assert np.array_equal(labels, expected)


@pytest.mark.parametrize("labels", ["devkit", "kaggle", "list"])
def test_validation_images_go_to_their_classes(labels, tmp_path):
    folder = imagenet(tmp_path, labels)
    assert run("imagenet", folder).made == 4
    found = {path.stem[-1]: path.parent.name for path in folder.glob("val/*/*.JPEG")}
    assert found == {"1": WNIDS[2], "2": WNIDS[0], "3": WNIDS[1], "4": WNIDS[2]}
    assert (run("imagenet", folder).made, list(folder.glob("val/*.JPEG"))) == (0, [])


@pytest.mark.parametrize("name", [*TRAINED, "imagenet"])
@pytest.mark.parametrize("renamed", [0, 3])
def test_killed_and_repeated_is_as_undisturbed(name, renamed, tmp_path, monkeypatch):
    """The process is killed just before a file is renamed: the first and the fourth."""
    undisturbed = MAKERS[name](tmp_path / "a")
    folder = tmp_path / "b"
    shutil.copytree(undisturbed, folder)
    run(name, undisturbed)
    child = os.fork()
    if child == 0:
        replace, calls = os.replace, []

        def replaced(*paths):
            calls.append(paths)
            os.kill(os.getpid(), signal.SIGKILL) if len(calls) > renamed else replace(*paths)

        monkeypatch.setattr(os, "replace", replaced)
        try:
            run(name, folder)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert content(folder) != content(undisturbed)
    run(name, folder)
    assert content(folder) == content(undisturbed)
    assert survey(DATA_SETS[name], folder, partial=True).usable


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the test reaches workers by forking")
def test_workers_end_where_their_parent_is_killed(tmp_path, monkeypatch):
    """Processes that it left behind would hold the pipe open."""
    folder = MAKERS["ade20k"](tmp_path)
    held, holding = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        monkeypatch.setattr(os, "replace", lambda *paths: (os.write(holding, b"x"), time.sleep(60)))
        try:
            run("ade20k", folder, workers=2)
        finally:
            os._exit(1)
    os.close(holding)
    assert os.read(held, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while select.select([held], [], [], 20)[0]:
        if not os.read(held, 1):
            break
    else:
        pytest.fail("workers live on")
    os.close(held)


def test_what_is_whole_stays_and_what_is_not_is_made_again(tmp_path):
    folder = MAKERS["ade20k"](tmp_path)
    first = run("ade20k", folder, workers=2)
    labels = sorted((folder / "annotations_detectron2").rglob("*.png"))
    before = content(folder)
    labels[0].write_bytes(labels[0].read_bytes()[:-5])
    Image.new("L", (3, 3)).save(labels[1])
    again = run("ade20k", folder)
    assert (first.made, first.kept, again.made, again.kept) == (5, 0, 2, 3)
    assert content(folder) == before
    assert run("ade20k", folder, force=True).made == 5


def test_damaged_files_are_named_and_the_others_prepared(tmp_path):
    folder = MAKERS["ade20k"](tmp_path)
    Image.new("L", SIZE, 151).save(folder / "annotations/training/ADE_train_00000001.png")
    Image.new("L", (2, 2), 1).save(folder / "annotations/training/ADE_train_00000002.png")
    with pytest.raises(InputError, match=r"2 of 5 label maps .*/ADE_train_00000001.png: holds label 151"):
        run("ade20k", folder)
    assert len(list(folder.glob("annotations_detectron2/*/*.png"))) == 3


@pytest.mark.parametrize(
    ("name", "remove", "what"),
    [
        ("cityscapes", "gtFine/train/*/*", "4 label maps of Cityscapes"),
        ("pascal_context", "trainval_merged.json", "5 label maps of Pascal Context"),
        ("imagenet", "*/data/*", "devkit_t12.*no such folder"),
        ("imagenet", "val/*", "has no images whose labels"),
        ("ade20k", "images/*/*", "has no images whose labels"),
    ],
)
def test_without_the_originals_it_says_what_is_missing(name, remove, what, tmp_path):
    folder = MAKERS[name](tmp_path)
    for path in folder.glob(remove):
        path.unlink()
    with pytest.raises(InputError, match=what):
        run(name, folder)
    assert len(list(folder.glob("gtFine/*/*/*labelTrainIds.png"))) == (4 if name == "cityscapes" else 0)


def test_other_formats_are_refused(tmp_path):
    folder = coco_stuff_10k(tmp_path)
    from scipy.io import savemat

    first, second = sorted((folder / "annotations").iterdir())[:2]
    savemat(first, {"S": repeat_to_image((1, 2)), "names": np.array([f"class {i}" for i in range(172)], object)})
    second.write_bytes(b"not a .mat file")
    with pytest.raises(InputError, match=r"2 of 5 .*v1.0, which has other ids"):
        run("coco_stuff_10k", folder)
    merged = pascal_context(tmp_path) / "trainval_merged.json"
    merged.write_text(merged.read_text()[:-20])
    with pytest.raises(InputError, match="is not JSON"):
        run("pascal_context", merged.parent)
    merged.write_text('{"images": [{}], "annos_segmentation": []}')
    with pytest.raises(InputError, match="has no list 'images'"):
        run("pascal_context", merged.parent)
