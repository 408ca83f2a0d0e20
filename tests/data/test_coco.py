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
def look(tmp_path):
    """Writes a changed copy of GOOD and checks it; returns its content, or the error's message."""
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


@pytest.fixture
def check(look):
    """The classes, or the error's message."""
    return lambda *args, **options: getattr(found := look(*args, **options), "classes", found)


@pytest.fixture
def check_masks(look):
    """The forms of the masks."""
    return lambda *args: look(*args).masks


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
        (put("annotations", 0, id=2), "id 2 occurs twice in annotations"),
        (put("annotations", 0, bbox=[10**400, 0, 9, 9]), "four numbers"),
        (put("annotations", 0, ignore=1), "annotation 1 has 'ignore'"),
        (put("annotations", 0, iscrowd=None), "annotation 1 has iscrowd None; it is 0"),
        (put("annotations", 0, iscrowd="1"), "annotation 1 has iscrowd '1'; it is 0"),
        (put("annotations", 0, iscrowd=[1]), "annotation 1 has iscrowd [1]; it is 0"),
        (put("annotations", 0, area=None), "annotation 1 has area None; give a number of pixels"),
        (put("annotations", 0, area="12"), "annotation 1 has area '12'"),
        (put("annotations", 0, area=-1), "annotation 1 has area -1"),
        (put("annotations", 0, area=float("nan")), "annotation 1 has area nan"),
        (put("annotations", 0, category_id=[7]), "unknown category [7]"),
        (put("annotations", 0, image_id=[1]), "is for image [1]"),
        (put("annotations", 0, id=None), "entry 0 of annotations has id None"),
        (put("annotations", 0, segmentation=[["1", 2, 3, 4, 5, 6]]), "neither lists of numbers"),
        (put("annotations", 0, segmentation={"size": [30, 20], "counts": [600]}), "of size [30, 20], its image 1.png"),
        (put("annotations", 0, segmentation={"size": [20, 30], "counts": [5, 5]}), "whose runs do not cover its image"),
        (put("annotations", 0, segmentation={"size": [20, 30], "counts": "abc"}), "whose runs do not cover its image"),
        (lambda content: [one.update(iscrowd=1) for one in content["annotations"]], "all annotations are crowds"),
        (put("categories", 0, id="7"), "entry 0 of categories has id '7'"),
        (put("categories", 0, name="platelet"), "categories 3 and 7 are both called 'platelet'"),
        (put("categories", 0, name=None), "category 7 has name None"),
        (put("images", 1, file_name="3.png"), "3.png: no such image; 1 of the 2 images"),
        (put("images", 1, file_name=None), "image 2 has file_name None"),
        (put("images", 0, width="30"), "image 1 has width '30' and height 20"),
        (put("images", 0, width=31), "1.png: is 30 x 20 pixels"),
        (lambda content: content.update(annotations=[]), "lists no annotations"),
        (lambda content: content.update(images=[]), "lists no images"),
        (lambda content: content.pop("categories"), "has no list 'categories'"),
        (lambda content: content["images"][0].pop("height"), "entry 0 of images lacks 'height'"),
    ],
)
def test_a_mistake_is_named(check, change, message):
    assert message in check(change)


def test_the_forms_of_masks_are_told(check_masks):
    polygon, mask = [[0, 0, 9, 0, 9, 9]], {"size": [20, 30], "counts": [0, 600]}
    assert check_masks() == {"none"}
    assert check_masks(put("annotations", 0, segmentation=polygon)) == {"none", "polygon"}
    assert check_masks(put("annotations", 0, segmentation=mask)) == {"none", "bitmask"}

    def crowd(content):
        content["annotations"][0].update(segmentation=mask, iscrowd=1)
        content["annotations"][1].update(segmentation=polygon)

    assert check_masks(crowd) == {"polygon"}


def test_an_image_that_was_cut_short_is_found_beyond_the_sample(check, tmp_path):
    """Of JPEG files with a valid header, those in the sample and those without an end marker are decoded."""

    def as_jpeg(content):
        content["images"] = [{"id": n, "file_name": f"{n}.jpg", "width": 30, "height": 20} for n in range(1, 9)]

    for n in range(1, 9):
        Image.effect_noise((30, 20), 50).save(tmp_path / f"{n}.jpg")
    assert check(as_jpeg, decoded=1) == ("platelet", "cell")
    (tmp_path / "6.jpg").write_bytes((tmp_path / "6.jpg").read_bytes()[:-60])
    assert "6.jpg: cannot be read as an image" in check(as_jpeg, decoded=1)


def test_boxes_rounded_by_a_pixel_pass(check):
    assert check(put("annotations", 0, bbox=[-1, 0, 32, 20])) == ("platelet", "cell")


def test_the_number_of_classes_must_agree(check):
    assert "has 2 categories, the config asks for 3 classes" in check(num_classes=3)


def test_missing_and_broken_files(check, tmp_path):
    with pytest.raises(InputError, match="none.json: no such file; expected COCO"):
        check_coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "broken.json").write_text('{"images": [')
    with pytest.raises(InputError, match="broken.json: is not JSON"):
        check_coco(tmp_path / "broken.json", tmp_path)
    with pytest.raises(InputError, match="brokn.json: no such file .did you mean broken.json.*; expected"):
        check_coco(tmp_path / "brokn.json", tmp_path)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    assert "2.png: cannot be read as an image" in check()
    with pytest.raises(InputError, match="no such folder"):
        check_coco(tmp_path / "set.json", tmp_path / "images")
