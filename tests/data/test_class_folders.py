"""`sirfp data check --images FOLDER`: one's own photos in one folder per class."""

from __future__ import annotations

import json
import shutil
import tarfile

import pytest
from PIL import Image

from sirfp.cli import main
from sirfp.data.images import check_images, known_classes, open_images
from sirfp.errors import InputError


@pytest.fixture
def photos(tmp_path):
    for name, count in (("cat", 2), ("dog", 3)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 8), (40 * i, 9, 9)).save(tmp_path / "photos" / name / f"{i}.jpg")
    return tmp_path / "photos"


def test_photos_in_one_folder_per_class_are_checked(photos, capsys):
    assert main(["data", "check", "--images", str(photos)]) == 0
    assert "5 images in 2 classes, 2 to 3 each (cat, dog): all is well" in capsys.readouterr().out
    assert main(["data", "check", "--images", str(photos), "--num-classes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"cat": 2, "dog": 3}


def broken(photos):
    (photos / "dog" / "1.jpg").write_bytes(b"no image")


def loose(photos):
    shutil.copy(photos / "dog" / "1.jpg", photos)


def packed(photos):
    with tarfile.open(photos / "cat.tar", "w") as tar:
        tar.add(photos / "cat", "cat")


@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        (broken, [], "dog/1.jpg: cannot be read as an image"),
        (loose, [], "1 images lie beside the folders"),
        (packed, [], "images in tar files are not checked here"),
        (lambda photos: None, ["--num-classes", "3"], "holds 2 classes (cat, dog), expected 3"),
        (lambda photos: None, ["--classes", "cat", "dog"], "folders of images name the classes themselves"),
        (shutil.rmtree, [], "no such folder"),
    ],
)
def test_mistakes(photos, capsys, change, words, says):
    change(photos)
    assert main(["data", "check", "--images", str(photos), *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("text", ["cat\ndog\n\n", "cat\n\ndog\n", "\ncat\ndog"])
def test_a_class_map_may_have_an_empty_line(photos, tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    found = open_images(photos, class_map=str(tmp_path / "classes.txt"))
    assert len(found) == 5 and [name for name in known_classes(found) if name] == ["cat", "dog"]


def test_a_class_map_names_each_class_once(photos, tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n cat\n\n")
    with pytest.raises(InputError, match=r"class 'cat' is on lines 1 and 4; name each class once$"):
        open_images(photos, class_map=str(tmp_path / "classes.txt"))
    with pytest.raises(InputError, match=r"none.txt: the class map cannot be read"):
        open_images(photos, class_map=str(tmp_path / "none.txt"))


def test_images_that_are_not_read_are_remarked(photos, capsys):
    """timm passes over images of other formats in silence."""
    for name in ("a.webp", "b.bmp", "C.BMP"):
        Image.new("RGB", (9, 8)).save(photos / "dog" / name)
    (photos / "dog" / "notes.txt").write_text("")
    assert main(["data", "check", "--images", str(photos)]) == 0
    said = "3 images ending in .bmp, .webp are left out: only .png, .jpg, .jpeg are read; convert them"
    assert said in " ".join(capsys.readouterr().out.split())
    assert check_images(open_images(photos)) == [said]
