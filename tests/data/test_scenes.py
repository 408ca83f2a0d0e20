"""The embedded scenes: exact annotations, disjoint splits, and the same bytes for the same seed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as run_length

from sirfp.data import composition, scenes
from sirfp.data.composition import CLASSES, MIN_VISIBLE, PHOTOGRAPHS, compose
from sirfp.data.scenes import load_scenes, make_scenes
from sirfp.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

SMALL = {"train": 6, "val": 3, "size": 64}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", **SMALL)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["train", "val"]), st.integers(0, 10_000), st.integers(0, 100), st.sampled_from([64, 97]))
def test_every_scene_is_annotated_exactly(split, index, seed, size):
    scene = compose(split, index, size=size, seed=seed)
    assert scene.image.shape == (size, size, 3) and scene.image.dtype == np.uint8
    assert scene.digits
    stacked = np.stack([digit.mask for digit in scene.digits])
    assert stacked.sum(0).max() == 1, "visible parts overlap"
    assert np.array_equal(scene.label_map > 0, stacked.any(0))
    for digit in scene.digits:
        x, y, width, height = digit.box
        inside = digit.mask[y : y + height, x : x + width]
        assert inside.sum() == digit.mask.sum(), "the box leaves pixels out"
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        assert MIN_VISIBLE <= digit.visible <= 1
        assert (scene.label_map[digit.mask] == digit.label + 1).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 100))
def test_a_scene_draws_only_from_its_split(index, seed):
    for split in ("train", "val"):
        scene = compose(split, index, size=64, seed=seed)
        assert scene.photograph in PHOTOGRAPHS[split]
        assert all(digit.scan in composition.scans(split)[digit.label] for digit in scene.digits)


def test_the_splits_share_no_scan_and_no_photograph():
    train, val = (np.concatenate(composition.scans(split)) for split in ("train", "val"))
    pixels = composition._scans()[0]
    assert not {scan.tobytes() for scan in pixels[train]} & {scan.tobytes() for scan in pixels[val]}
    assert len(train) + len(val) == len(pixels)
    train, val = ([composition._photograph(name) for name in PHOTOGRAPHS[split]] for split in ("train", "val"))
    assert not {photo.tobytes() for photo in train} & {photo.tobytes() for photo in val}


@pytest.mark.slow  # test_demo.py's trained networks read scenes rightly, which they could not of other scans
def test_the_scans_are_those_that_scikit_learn_loads():
    from sklearn.datasets import load_digits

    digits, scans = load_digits(), composition._scans()[0]
    assert scans.dtype == np.float32 and np.array_equal(scans, digits.images / 16)
    for split in ("train", "val"):
        assert all((digits.target[places] == i).all() for i, places in enumerate(composition.scans(split)))


def test_digits_stand_out_from_what_they_cover():
    """Otherwise no network could learn the set."""
    gaps = []
    for index in range(20):
        scene = compose("train", index, size=128, seed=0)
        value = scene.image.max(2).astype(float)
        gaps.append(value[scene.label_map > 0].mean() - value[scene.label_map == 0].mean())
    assert min(gaps) > 30


def test_same_arguments_give_the_same_bytes_and_another_seed_others(small, tmp_path):
    again = make_scenes(tmp_path / "again", **SMALL)
    assert digests(again.root) == digests(small.root)
    other = make_scenes(tmp_path / "other", **SMALL, seed=1)
    assert digests(other.images("train")) != digests(small.images("train"))


def test_more_scenes_begin_with_the_same_ones(small, tmp_path):
    fewer = make_scenes(tmp_path / "fewer", train=2, val=1, size=64)
    more, few = digests(small.images("train")), digests(fewer.images("train"))
    assert few.items() <= more.items() and len(few) == 2


def test_the_three_views_agree(small):
    """Label maps, COCO masks and boxes, and crops agree on the digits."""
    for split in ("train", "val"):
        coco = json.loads(small.annotations(split).read_text())
        assert [category["name"] for category in coco["categories"]] == list(CLASSES)
        assert len(coco["images"]) == SMALL[split]
        for image in coco["images"]:
            with Image.open(small.images(split) / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"]) == (64, 64) and picture.mode == "RGB"
            labels = np.zeros((64, 64), np.uint8)
            for annotation in coco["annotations"]:
                if annotation["image_id"] == image["id"]:
                    mask = run_length.decode(annotation["segmentation"]).astype(bool)
                    assert mask.sum() == annotation["area"]
                    assert list(run_length.toBbox(annotation["segmentation"])) == annotation["bbox"]
                    labels[mask] = annotation["category_id"]
            with Image.open((small.labels(split) / image["file_name"]).with_suffix(".png")) as picture:
                assert np.array_equal(np.asarray(picture), labels)
        by_id = {annotation["id"]: annotation for annotation in coco["annotations"]}
        crops = list(small.crops(split).rglob("*.png"))
        assert crops and sorted(path.name for path in small.crops(split).iterdir()) == list(CLASSES)
        for path in crops:
            assert CLASSES[by_id[int(path.stem)]["category_id"] - 1] == path.parent.name


def test_a_finished_set_is_found_not_made_again(small, monkeypatch):
    monkeypatch.setattr(scenes, "_write", lambda _: pytest.fail("made again"))
    assert make_scenes(small.root, **SMALL) == small == load_scenes(small.root)


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    write = scenes._save

    def interrupted(path, image, *options):
        if path.name == "000003.png":
            raise KeyboardInterrupt
        write(path, image, *options)

    monkeypatch.setattr(scenes, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "scenes", **SMALL)
    assert not list(tmp_path.iterdir())


def test_another_set_in_the_folder_is_reported_and_replaced_only_by_force(small, tmp_path):
    root = tmp_path / "scenes"
    make_scenes(root, train=1, val=1, size=64)
    with pytest.raises(InputError, match="holds scenes with train 1, val 1, size 64, seed 0, asked for train 6"):
        make_scenes(root, **SMALL)
    assert make_scenes(root, **SMALL, force=True).train == 6
    assert digests(root) == digests(small.root)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="exists and is no scene set"):
            make_scenes(tmp_path, **SMALL, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_lost_files_and_missing_sets_are_reported(tmp_path):
    with pytest.raises(InputError, match="no finished scene set"):
        load_scenes(tmp_path / "nowhere")
    made = make_scenes(tmp_path / "scenes", train=2, val=1, size=64)
    lost = made.labels("train") / "000001.png"
    kept = lost.read_bytes()
    lost.unlink()
    with pytest.raises(InputError, match="trainannot: 1 of 2 files"):
        load_scenes(made.root)
    lost.write_bytes(kept)
    made.annotations("val").unlink()
    with pytest.raises(InputError, match="val.json: is missing"):
        load_scenes(made.root)


@pytest.mark.parametrize(("name", "value"), [("train", 0), ("val", -1), ("size", 8), ("seed", -1)])
def test_arguments_out_of_range_are_named(tmp_path, name, value):
    with pytest.raises(InputError, match=f"{name} must be at least .*, got {value}"):
        make_scenes(tmp_path / "scenes", **{**SMALL, name: value})
    assert not list(tmp_path.iterdir())


def test_the_default_place_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "second"))
    monkeypatch.setenv("SIRFP_DATASETS", str(tmp_path / "first"))
    assert make_scenes(train=1, val=1, size=64).root == tmp_path / "first" / "scenes"
    monkeypatch.delenv("SIRFP_DATASETS")
    with pytest.raises(InputError, match="second"):
        load_scenes()
