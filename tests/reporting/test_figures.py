"""Figures are complete PNG files of a readable size, and names in them can be distinguished."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sirfp.errors import InputError
from sirfp.reporting import figures
from sirfp.structure.plan import PruningPlan


def plan(groups: int) -> PruningPlan:
    names = [f"backbone.bottom_up.res{i // 10}.{i % 10}.conv1" for i in range(groups)]
    return PruningPlan(
        kept={name: tuple(range(1 + i % 8)) for i, name in enumerate(names)},
        channels=dict.fromkeys(names, 8),
        places={name: (f"{name}.weight", 0) for name in names},
        flops=(100, 40),
        params=(10, 5),
    )


@pytest.mark.parametrize("groups", [1, 70])
def test_kept_channels(groups, tmp_path):
    figures.kept_channels(plan(groups), tmp_path / "kept.png")
    image = cv2.imread(str(tmp_path / "kept.png"))
    assert [p.name for p in tmp_path.iterdir()] == ["kept.png"]
    assert image.shape[0] >= 24 * groups and image.shape[1] > 1000
    assert (image[:3] == 255).all(), "the background is light"


def test_a_plan_without_groups_is_refused(tmp_path):
    with pytest.raises(InputError, match="no group"):
        figures.kept_channels(plan(0), tmp_path / "kept.png")
    assert not list(tmp_path.iterdir())


def test_predictions(tmp_path):
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (48, 64, 3)).astype(np.float32) for _ in range(3)]
    truths = [random.choice([0, 1, 2, 255], (48, 64)) for _ in range(3)]
    predicted = {"dense": truths, "pruned": [truth % 3 for truth in truths]}
    figures.predictions(images, truths, predicted, ["a", "b", "c"], tmp_path / "scenes.png")
    height, width = cv2.imread(str(tmp_path / "scenes.png")).shape[:2]
    assert 0.5 < height / width < 0.8  # 3 rows of 4 pictures, 3 by 4
    with pytest.raises(ValueError, match="3 images, but 2 of 'dense'"):
        figures.predictions(images, truths, {"dense": truths[:2]}, ["a"], tmp_path / "no.png")


@pytest.mark.parametrize("side", [64, 300])
def test_names_of_boxes_at_the_upper_edge_are_inside_the_picture(side, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_write", lambda figure, path: drawn.append(figure))
    box = (-1.0, 0.5, 0.4 * side, 0.5 * side)
    figures.gallery([[figures.Picture(np.zeros((side, side, 3)), "one", [box], ["cat"], [(1, 0, 0)])]], tmp_path / "a")
    drawn[0].canvas.draw()
    (axes,) = drawn[0].axes
    (text,) = (text for text in axes.texts if text.get_text() == "cat")
    picture, name = axes.get_window_extent(), text.get_window_extent()
    assert picture.y0 <= name.y0 and name.y1 <= picture.y1 + 0.5 and picture.x0 <= name.x0


def test_a_gallery_has_boxes_and_lines(tmp_path):
    image = np.full((48, 64, 3), 128, np.uint8)
    boxed = figures.Picture(image, "found", [(8, 8, 40, 40)], ["<cell> 0.9"], [(1.0, 0.0, 0.0)])
    figures.gallery([[boxed, figures.Picture(image, lines=[("dense: 3", figures.RIGHT)])]], tmp_path / "two.png")
    drawn = cv2.imread(str(tmp_path / "two.png")).astype(int)
    red = (drawn[..., 2] > 200) & (drawn[..., :2].max(-1) < 60)
    assert red[:, : drawn.shape[1] // 2].sum() > 100 and not red[:, drawn.shape[1] // 2 :].any()
    with pytest.raises(InputError, match="no picture"):
        figures.gallery([], tmp_path / "none.png")


def test_paint_shows_what_is_ignored_white():
    palette = figures.colours(2)
    painted = figures.paint(np.array([[0, 1, 255, 7, -1]]), palette)
    np.testing.assert_array_equal(painted[0], [palette[0], palette[1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    many = np.zeros((300, 3))  # more than the labels' type can count
    np.testing.assert_array_equal(figures.paint(np.uint8([[0, 255]]), many)[0], [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("count", [1, 11, 19, 150])
def test_colours_differ(count):
    found = figures.colours(count)
    assert found.shape == (count, 3) and found.min() >= 0 and found.max() <= 1
    assert len(np.unique(found.round(4), axis=0)) == count


def test_short_names_stay_distinct():
    names = ["model.a." + "x" * 60 + f".{i}.conv" for i in range(3)] + ["model.b.conv"]
    short = figures.shorten(names, 30)
    assert max(map(len, short)) <= 30 and len(set(short)) == 4
    assert short[3] == "b.conv"
    ambiguous = [f"a.{'x' * 30}{i}{'y' * 30}" for i in range(2)]
    assert figures.shorten(ambiguous, 20) == [name.removeprefix("a.") for name in ambiguous]
