"""Detection files in COCO's format: a good one passes, each mistake is one clear line."""

import copy
import json

import pytest
from PIL import Image

from sirfp.data.coco import check_coco
from sirfp.errors import InputError

GOOD = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 30, "height": 20} for n in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 30, 20]},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [2.5, 3, 10, 17.5]},
    ],
    "categories": [{"id": 7, "name": "cell"}, {"id": 3, "name": "platelet"}],
}


@pytest.fixture
def check(tmp_path):
    """Writes a changed copy of GOOD, checks it, and gives back the names, or the message."""
    for image in GOOD["images"]:
        Image.new("RGB", (30, 20)).save(tmp_path / image["file_name"])

    def run(change=lambda content: None, **options):
        content = copy.deepcopy(GOOD)
        change(content)
        (tmp_path / "set.json").write_text(json.dumps(content))
        try:
            return check_coco(tmp_path / "set.json", tmp_path, **options)
        except InputError as error:
            assert "\n" not in str(error)
            return str(error)

    return run


def test_a_good_file_gives_its_categories_by_id(check):
    assert check() == ("platelet", "cell")
    assert check(num_classes=2) == ("platelet", "cell")


def put(part, index, **entries):
    return lambda content: content[part][index].update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("annotations", 1, category_id=4), "annotation 2 has unknown category 4; categories has 3, 7"),
        (put("annotations", 1, image_id=9), "annotation 2 is for image 9"),
        (put("annotations", 0, bbox=[0, 0, 0, 5]), "annotation 1 has box [0, 0, 0, 5]; four numbers"),
        (put("annotations", 0, bbox=[0, 0, 5]), "four numbers"),
        (put("annotations", 0, bbox=[0, 0, float("nan"), 5]), "four numbers"),
        (put("annotations", 0, bbox=[-3, 0, 9, 9]), "3 pixels outside its image 1.png of 30 x 20"),
        (put("annotations", 0, bbox=[25, 0, 9, 9]), "4 pixels outside"),
        (put("annotations", 0, id=2), "id 2 stands twice in annotations"),
        (put("images", 1, file_name="3.png"), "3.png: no such image; 1 of the 2 images"),
        (put("images", 0, width=31), "1.png: is 30 x 20 pixels"),
        (lambda content: content.update(annotations=[]), "lists no annotations"),
        (lambda content: content.update(images=[]), "lists no images"),
        (lambda content: content.pop("categories"), "has no list 'categories'"),
        (lambda content: content["images"][0].pop("height"), "entry 0 of images lacks 'height'"),
    ],
)
def test_a_mistake_is_named(check, change, message):
    assert message in check(change)


def test_boxes_rounded_by_a_pixel_pass(check):
    assert check(put("annotations", 0, bbox=[-1, 0, 32, 20])) == ("platelet", "cell")


def test_the_number_of_classes_must_agree(check):
    assert "has 2 categories, the config asks for 3 classes" in check(num_classes=3)


def test_missing_and_broken_files(check, tmp_path):
    with pytest.raises(InputError, match="none.json: cannot be read"):
        check_coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "broken.json").write_text('{"images": [')
    with pytest.raises(InputError, match="broken.json: is not JSON"):
        check_coco(tmp_path / "broken.json", tmp_path)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    assert "2.png: cannot be read as an image" in check()
    with pytest.raises(InputError, match="no such folder"):
        check_coco(tmp_path / "set.json", tmp_path / "images")
