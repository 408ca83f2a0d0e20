"""Label maps that are valid but probably not meant: said by `sirfp data check` and when a set is first read."""

import logging

import numpy as np
import pytest
from PIL import Image

from sirfp.cli import main
from sirfp.data.folders import check_sem_seg_folder
from sirfp.data.registration import register_sem_seg_folder

CLASSES = ("ground", "object", "sky")


def masks(root, *values):
    """Two pairs; each value fills an equal part of the rows."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    label = np.repeat(np.array(values, np.uint8), 60 // len(values))[:, None].repeat(8, 1)
    for name in "ab":
        Image.fromarray(np.zeros((*label.shape, 3), np.uint8)).save(root / f"images/{name}.png")
        Image.fromarray(label).save(root / f"labels/{name}.png")
    return root / "images", root / "labels"


def remarks(folders, classes=CLASSES, ignore=255):
    return list(check_sem_seg_folder(*folders, classes, ignore).remarks)


def test_masks_of_0_and_255(tmp_path):
    [said] = remarks(masks(tmp_path, 0, 0, 0, 255), CLASSES[:2])
    assert said.startswith(
        "class 'object' has no pixel in the 2 label maps read; 25% of the pixels are 255, which is ign"
    )
    assert "if 255 is meant as a class" in said


def test_masks_without_any_labelled_pixel(tmp_path):
    assert remarks(masks(tmp_path, 255)) == [
        "every pixel of the 2 label maps read is 255, which is ignored: nothing can be learned"
    ]


def test_mostly_ignored_masks(tmp_path):
    assert remarks(masks(tmp_path, 0, 1, 2, 9, 9, 9, 9, 9, 9, 9), ignore=9) == [
        "70% of the pixels are 9, which is ignored: only the other 30% can be learned"
    ]


def test_classes_that_do_not_occur_without_ignored_pixels(tmp_path):
    assert remarks(masks(tmp_path, 0, 0)) == ["classes 'object', 'sky' have no pixel in the 2 label maps read"]
    many = tuple(f"c{i}" for i in range(9))
    assert "'c1', 'c2', 'c3', 'c4', 'c5' and 3 more have no pixel" in remarks(masks(tmp_path / "9", 0), many)[0]


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 1, 2, 255)])
def test_usual_masks_need_no_remark(tmp_path, values):
    assert remarks(masks(tmp_path, *values)) == []


def test_data_check_and_the_first_reading_say_it(tmp_path, capsys, caplog, clean_catalogs):
    from detectron2.data import DatasetCatalog

    images, labels = masks(tmp_path, 0, 255)
    assert main(["data", "check", "--images", f"{images}", "--labels", f"{labels}", "--classes", *CLASSES[:2]]) == 0
    assert "class 'object' has no pixel" in capsys.readouterr().out
    register_sem_seg_folder("masks", images, labels, CLASSES[:2])
    with caplog.at_level(logging.WARNING, "sirfp"):
        assert len(DatasetCatalog.get("masks")) == len(DatasetCatalog.get("masks")) == 2
    assert [r.message for r in caplog.records].count(
        f"Data set 'masks': {remarks((images, labels), CLASSES[:2])[0]}"
    ) == 1
