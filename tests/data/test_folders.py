"""A user's folders of images and label maps: valid ones are listed, each mistake gives one clear line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sirfp.data.folders import check_classes, check_sem_seg_folder, image_size, read_label
from sirfp.errors import InputError

CLASSES = ("sky", "road", "car")
EXIF_ORIENTATION = 0x0112


@pytest.fixture
def folders(tmp_path):
    """Three good pairs, images in three formats, label maps grey, palette and 16 bits deep."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "c.bmp"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(images / name)
    values = rng.integers(0, 3, (20, 30), np.uint8)
    values[0, 0] = 255
    Image.fromarray(values).save(labels / "a.png")
    palette = Image.fromarray(values).convert("P")
    palette.putdata(values.ravel().tolist())
    palette.putpalette(rng.integers(0, 256, 768, np.uint8).tolist())
    palette.save(labels / "b.png")
    Image.fromarray(values.astype(np.uint16)).save(labels / "c.png")
    (labels / "of-no-image.png").write_bytes(b"")
    return images, labels, values


def test_pairs_are_found_and_label_maps_read_as_indices(folders):
    images, labels, values = folders
    pairs = check_sem_seg_folder(images, labels, CLASSES)
    assert [(pair.image.name, pair.label.name) for pair in pairs] == [
        ("a.jpg", "a.png"),
        ("b.png", "b.png"),
        ("c.bmp", "c.png"),
    ]
    assert all((pair.width, pair.height) == (30, 20) for pair in pairs)
    for pair in pairs:
        assert np.array_equal(read_label(pair.label), values)


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def rejected(images, labels, classes=CLASSES, **options) -> str:
    with pytest.raises(InputError) as error:
        check_sem_seg_folder(images, labels, classes, **options)
    return one_line(error)


def test_a_missing_folder_says_the_layout(folders):
    images, labels, _ = folders
    message = rejected(images / "train", labels)
    assert "images/train: no such folder; expected images in" in message and str(labels) in message


def test_a_misspelt_folder_is_answered_with_its_neighbour(folders):
    images, labels, _ = folders
    assert f"did you mean {images.name}?" in rejected(images.with_name(images.name + "s"), labels)


def test_an_empty_folder(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no files ending in .jpg" in rejected(tmp_path / "empty", folders[1])


def test_images_without_label_map_are_counted_and_the_first_named(folders):
    images, labels, _ = folders
    (labels / "b.png").unlink()
    (labels / "c.png").unlink()
    message = rejected(images, labels)
    assert "b.png: no label map" in message and "2 of 3 images lack one" in message


def test_two_images_of_one_stem(folders):
    images, labels, _ = folders
    (images / "a.png").write_bytes((images / "b.png").read_bytes())
    assert "a.png: shares its stem with a.jpg" in rejected(images, labels)


def test_a_label_outside_the_classes(folders):
    images, labels, _ = folders
    message = rejected(images, labels, CLASSES[:2])
    assert "a.png: label 2 is outside the 2 classes; allowed are 0..1 and 255" in message
    assert "label 255" in rejected(images, labels, ignore=3)


def test_a_label_map_of_another_size(folders):
    images, labels, _ = folders
    Image.new("L", (30, 21)).save(labels / "b.png")
    assert "b.png: is 30 x 21 pixels, its image b.png is 30 x 20" in rejected(images, labels)


def test_a_label_map_in_colours(folders):
    images, labels, _ = folders
    Image.new("RGB", (30, 20)).save(labels / "b.png")
    assert "b.png: a label map has one channel" in rejected(images, labels)


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
def test_an_image_cut_short(folders, name):
    images, labels, _ = folders
    content = (images / name).read_bytes()
    (images / name).write_bytes(content[: len(content) // 2])
    assert f"{name}: cannot be read as an image" in rejected(images, labels)
    (images / name).write_bytes(b"not an image")
    assert f"{name}: cannot be read as an image" in rejected(images, labels)


def test_pixels_beyond_the_cap_are_not_decoded(folders):
    """With a cap of two pairs, every second of three is decoded: the first and the last."""
    images, labels, _ = folders
    Image.new("L", (30, 20), 77).save(labels / "b.png")
    assert len(check_sem_seg_folder(images, labels, CLASSES, decoded=2)) == 3
    assert "label 77" in rejected(images, labels)


def test_a_turned_photograph_is_measured_as_shown(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_size(tmp_path / "turned.jpg") == (20, 30)


@settings(max_examples=50)
@given(st.lists(st.sampled_from("abcde"), max_size=6), st.integers(-1, 7))
def test_classes_are_accepted_exactly_when_distinct_and_ignore_is_none_of_them(classes, ignore):
    good = bool(classes) and len(set(classes)) == len(classes) and not 0 <= ignore < len(classes)
    if good:
        check_classes(classes, ignore)
    else:
        with pytest.raises(InputError):
            check_classes(classes, ignore)


def test_class_names_in_one_string_are_refused():
    with pytest.raises(InputError, match="list of at least one class name"):
        check_classes("sky", 255)


def test_sizes_of_png_files_come_from_their_headers(tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    noise = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(noise).save(path, exif=exif)
    assert image_size(path) == (20, 30)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (30, 20)


def test_only_listed_images_are_of_the_set(folders, tmp_path):
    images, labels, _ = folders
    listed = tmp_path / "list.txt"
    listed.write_text("c 1\n\nb\n")
    pairs = check_sem_seg_folder(images, labels, CLASSES, listed=listed)
    assert [pair.image.stem for pair in pairs] == ["b", "c"]
    for text, what in (("b\nz\n", "has no image z; 1 of the 2"), ("\n", "is empty"), (None, "cannot be read")):
        listed.write_text(text) if text else listed.unlink()
        with pytest.raises(InputError, match=what):
            check_sem_seg_folder(images, labels, CLASSES, listed=listed)
