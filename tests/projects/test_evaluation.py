"""Boundary IoU: cases that can be counted by hand, and the paper's definition. Files of predictions."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sirfp.data.folders import read_label
from sirfp.data.sets import ade20k, cityscapes

PROJECT = str(Path(__file__).resolve().parents[2] / "projects" / "segmentation")
sys.path.insert(0, PROJECT)
from segmentation.boundary import BoundaryIoU, boundary  # noqa: E402
from segmentation.predictions import PredictionFiles, names  # noqa: E402

sys.path.remove(PROJECT)

VOID = 255


def square(top: int, left: int, side: int = 6, size: int = 20) -> np.ndarray:
    """Class 1 on class 0."""
    labels = np.zeros((size, size), np.int64)
    labels[top : top + side, left : left + side] = 1
    return labels


def scores(truth, predicted, ratio=0.001, classes=2):
    """A ratio this small is a distance of one pixel."""
    counted = BoundaryIoU(classes, VOID, ratio)
    counted.add(truth, predicted)
    return counted.per_class()


def test_what_is_right_has_all_and_what_is_nowhere_near_has_nothing():
    assert scores(square(7, 7), square(7, 7)).tolist() == [1, 1]
    assert scores(square(2, 2), square(12, 12))[1] == 0


def test_a_square_that_is_one_pixel_off():
    """Rings of 6 x 6 have 20 pixels each. Shifted by a column, they share 5 pixels in the top and bottom rows each."""
    assert scores(square(7, 7), square(7, 8))[1] == pytest.approx(10 / (20 + 20 - 10))


def test_a_square_that_is_one_pixel_larger():
    """The ring of 8 x 8 around that of 6 x 6 shares no pixel with it, although plain IoU is 36 / 64."""
    assert scores(square(7, 7), square(6, 6, side=8))[1] == 0
    wider = scores(square(7, 7), square(6, 6, side=8), ratio=2 / 28.28)[1]  # two pixels: rings of 28 + 20 and 20 + 12
    assert wider == pytest.approx(20 / (48 + 32 - 20))


def test_holes_count_and_plain_iou_does_not_see_it():
    holed = square(4, 4, side=12)
    holed[9, 9] = 0
    ring = 8  # around the hole
    assert scores(holed, square(4, 4, side=12))[1] == pytest.approx(44 / (44 + ring))


def test_ignored_pixels_count_nowhere_and_are_no_contour():
    truth = square(0, 0, side=20)
    truth[:, 10:] = VOID
    predicted = np.ones_like(truth)
    predicted[:, 12:] = 0  # wrong where nothing counts
    assert boundary(truth, truth == VOID, 1)[:, 9].sum() == 2, "the image's border alone"
    assert scores(truth, predicted)[1] == 1 and np.isnan(scores(truth, predicted)[0])


def test_counts_add_up_over_images():
    counted = BoundaryIoU(2, VOID, 0.001)
    counted.add(square(7, 7), square(7, 7))
    counted.add(square(7, 7), square(7, 8))
    assert counted.per_class()[1] == pytest.approx((20 + 10) / (20 + 30))
    assert np.isnan(BoundaryIoU(3, VOID, 0.02).per_class()).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(4, 30), st.integers(4, 30), st.integers(1, 5), st.integers(1, 4))
def test_it_is_the_paper_s_band_of_each_class(seed, height, width, classes, distance):
    """A mask minus its erosion by 3 x 3, applied `distance` times to the mask with a border of zeros."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, classes, (-(-height // 4), -(-width // 4)))
    labels = np.kron(coarse, np.ones((4, 4), int))[:height, :width]
    found = boundary(labels, np.zeros(labels.shape, bool), distance)
    for k in range(classes):
        mask = cv2.copyMakeBorder((labels == k).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance)[1:-1, 1:-1]
        np.testing.assert_array_equal(found & (labels == k), (labels == k) & (eroded == 0))


@pytest.mark.parametrize(
    ("split", "classes", "reader"),
    [
        ("cityscapes_fine_sem_seg_test", 19, cityscapes.IDS),
        ("ade20k_sem_seg_val", 150, ade20k.IDS),
        ("camvid_sem_seg_test", 11, read_label),
        ("folder_test", 300, read_label),
    ],
)
def test_files_of_predictions_hold_the_published_ids(split, classes, reader, tmp_path):
    predicted = np.arange(classes).reshape(-1, 1)
    image = "x/berlin_000000_000019_leftImg8bit.png"
    files = PredictionFiles(tmp_path / "a" / "b", split, classes, [image])
    path = files.write(image, predicted)
    assert path == tmp_path / "a/b/berlin_000000_000019_leftImg8bit.png" and np.array_equal(reader(path), predicted)
    if split.startswith("cityscapes"):  # as its server has it: one channel of 8 bits, road 7, sidewalk 8, bicycle 33
        written = Image.open(path)
        assert written.mode == "L" and [np.array(written)[i, 0] for i in (0, 1, 2, 18)] == [7, 8, 11, 33]


def test_images_of_one_name_in_two_folders_have_two_files(tmp_path):
    images = [str(tmp_path / "set" / name) for name in ("rain/a.png", "sun/a.png", "sun/a.b.png")]
    files = PredictionFiles(tmp_path / "out", "of_nobody", 3, images)
    written = [files.write(image, np.full((2, 2), number)) for number, image in enumerate(images)]
    assert [str(path.relative_to(tmp_path / "out")) for path in written] == ["rain/a.png", "sun/a.png", "sun/a.b.png"]
    assert [np.array(Image.open(path))[0, 0] for path in written] == [0, 1, 2]


def test_names_of_files_of_predictions_differ():
    assert names(["x/a.jpg", "x/b.jpg"]) == {"x/a.jpg": "a.png", "x/b.jpg": "b.png"}  # one folder: as they always were
    assert set(names(["x/a.jpg", "x/a.bmp", "x/b.jpg"]).values()) == {"a.jpg.png", "a.bmp.png", "b.png"}
    assert names(["x/1/a.jpg", "x/1/2/a.jpg"]) == {"x/1/a.jpg": "a.png", "x/1/2/a.jpg": "2/a.png"}
    assert names([]) == {}
