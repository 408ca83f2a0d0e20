"""Checks of public data sets: complete miniatures pass, and every planted fault is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from miniature_sets import MAKERS, WNIDS, image
from PIL import Image

from sirfp.cli import main
from sirfp.data.descriptions import DATA_SETS, describe
from sirfp.data.splits import files_of
from sirfp.data.survey import survey

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")
SEGMENTATION = [name for name, known in DATA_SETS.items() if known.task == "segmentation"]
PREPARED = [name for name in SEGMENTATION if name != "camvid"]


def look(name, folder, **options):
    return survey(DATA_SETS[name], folder, **{"partial": True, **options})


def first(name, folder, split=0):
    known = DATA_SETS[name]
    return files_of(folder, known.splits[split], known.task)[0]


def missing_split(name, folder):
    split = DATA_SETS[name].splits[1]
    for found in files_of(folder, split, "segmentation"):
        found.image.unlink()
    return split.name, "missing", "image missing"


def missing_label(name, folder):
    found = first(name, folder)
    for path in (found.label, *(raw for raw, _ in found.raw if raw.name != "trainval_merged.json")):
        path.unlink(missing_ok=True)
    (folder / "trainval_merged.json").unlink(missing_ok=True)
    return found.label.name, "label missing", "annotation missing"


def truncated_image(name, folder):
    path = first(name, folder).image
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name, "unreadable"


def truncated_label(name, folder):
    path = first(name, folder).label
    path.write_bytes(path.read_bytes()[:-30])
    return path.name, "unreadable"


def label_out_of_range(name, folder):
    path = first(name, folder, split=1).label
    pixels = np.asarray(Image.open(path)).copy()
    pixels[2, 3] = 200
    Image.fromarray(pixels).save(path)
    return f"{path}: holds label 200", "label"


def wrong_size(name, folder):
    path = first(name, folder).label
    Image.new("L", (5, 4)).save(path)
    return f"{path}: is 5 x 4 pixels, its image is 8 x 6", "size"


def missing_image(name, folder):
    found = first(name, folder)
    found.image.unlink()
    return (found.image.name if DATA_SETS[name].splits[0].listed else found.label.name), "image missing"


def wrong_nesting(name, folder):
    inner = folder / "unpacked" / "here"
    inner.mkdir(parents=True)
    for part in [path for path in folder.iterdir() if path.name != "unpacked"]:
        part.rename(inner / part.name)
    return f"move what is in it to {folder}", "missing"


FAULTS = [
    *(missing_split, missing_label, truncated_image, truncated_label),
    *(label_out_of_range, wrong_size, missing_image, wrong_nesting),
]


@pytest.mark.parametrize("name", MAKERS)
def test_whole_miniatures_pass(name, trees):
    found = look(name, trees / DATA_SETS[name].folder)
    assert found.usable, found.faults
    assert all(state.images and state.decoded == state.images for state in found.states)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_planted_fault_is_named(name, fault, tree):
    folder = tree(name)
    text, *kinds = fault(name, folder)
    found = look(name, folder)
    assert {one.kind for one in found.faults} <= {*kinds, "list missing"} and not found.usable
    assert any(text in one.what or text == one.split for one in found.faults), found.faults


@pytest.mark.parametrize("name", PREPARED)
def test_unprepared_labels_say_how_to_prepare_them(name, tmp_path):
    folder = MAKERS[name](tmp_path)
    faults = look(name, folder).faults
    assert faults and all(f"sirfp data prepare {name}" in fault.what for fault in faults)
    assert {fault.kind for fault in faults} == {"list missing" if name == "pascal_context" else "unprepared"}


def test_files_that_only_detectron2_reads_must_be_there_too(tree):
    folder = tree("cityscapes")
    lost = folder / "gtFine/val/lindau/lindau_000001_000019_gtFine_polygons.json"
    lost.unlink()
    (fault,) = look("cityscapes", folder).faults
    assert (fault.split, fault.kind, fault.files) == ("val", "annotation missing", 1) and str(lost) in fault.what


def test_labels_that_are_not_shifted_are_found(tree):
    folder = tree("ade20k")
    shutil.copytree(folder / "annotations", folder / "annotations_detectron2", dirs_exist_ok=True)
    assert {fault.kind for fault in look("ade20k", folder).faults} == {"label"}


def test_fewer_images_than_released(trees):
    faults = survey(DATA_SETS["ade20k"], trees / "ADEChallengeData2016").faults
    assert [(fault.split, fault.kind, fault.files) for fault in faults] == [
        ("train", "count", 20207),
        ("val", "count", 1998),
    ]
    assert "3 of 20210 images" in faults[0].what


def test_a_truncated_file_beyond_the_sample_is_found(tree):
    folder = tree("camvid")
    last = sorted((folder / "train").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-30])
    bad = sorted((folder / "trainannot").iterdir())[1]
    Image.new("L", (8, 6), 77).save(bad)
    assert {fault.kind for fault in look("camvid", folder, decoded=1).faults} == {"unreadable"}
    assert {fault.kind for fault in look("camvid", folder, decoded=None).faults} == {"unreadable", "label"}


def test_an_archive_of_another_name_is_found(tree, tmp_path):
    folder = tree("pascal_context")
    (tmp_path / "VOCdevkit").mkdir()
    folder.rename(tmp_path / "VOCdevkit" / "VOC2010")
    (fault,) = look("pascal_context", folder).faults
    assert fault.kind == "missing" and str(tmp_path / "VOCdevkit" / "VOC2010") in fault.what


def test_a_missing_test_split_is_no_fault(tree):
    folder = tree("camvid")
    for part in ("test", "testannot"):
        shutil.rmtree(folder / part)
    assert look("camvid", folder).usable


def test_faults_of_boxes(tree):
    folder = tree("coco")
    path = folder / "annotations/instances_val2017.json"
    right = json.loads(path.read_text())
    (folder / "train2017/000000000139.jpg").unlink()
    for wrong, what in (({"bbox": [6, 1, 30, 2]}, "outside its image"), ({"category_id": 91}, "unknown category 91")):
        path.write_text(json.dumps({**right, "annotations": [{**right["annotations"][0], **wrong}]}))
        train, val = look("coco", folder).faults
        assert "000000000139.jpg: no such image" in train.what and what in val.what
    path.unlink()
    assert look("coco", folder).faults[1].kind == "label missing"
    assert [fault.split for fault in look("coco", folder, decoded=0).faults] == ["val"]


def test_faults_of_class_folders(tree):
    folder = tree("imagenet")
    image(folder / "train" / "cat" / "1.JPEG")
    image(folder / "val" / "ILSVRC2012_val_00000009.JPEG")
    truncated = folder / "train" / WNIDS[0] / f"{WNIDS[0]}_10026.JPEG"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    found = [(fault.split, fault.kind) for fault in look("imagenet", folder).faults]
    assert found == [("train", "unknown class"), ("train", "unreadable"), ("val", "unprepared")]
    kinds = {fault.kind for fault in look("imagenet", folder, partial=False).faults if fault.split == "train"}
    assert kinds == {"unknown class", "unreadable", "count", "class missing"}
    inner = folder / "ILSVRC" / "Data" / "CLS-LOC"
    inner.mkdir(parents=True)
    for part in ("train", "val"):
        (folder / part).rename(inner / part)
    assert all(f"{inner} has such files" in fault.what for fault in look("imagenet", folder).faults)


def test_unsorted_validation_images_are_not_missing_as_well(tmp_path):
    (fault,) = look("imagenet", MAKERS["imagenet"](tmp_path)).faults
    assert (fault.split, fault.kind, fault.files) == ("val", "unprepared", 4)


@pytest.mark.parametrize(
    ("said", "name"),
    [("ADE20K", "ade20k"), ("Cityscapes", "cityscapes"), ("VOC2010", "pascal_context"), ("COCO_2017_val", "coco")],
)
def test_a_set_is_known_by_its_folders_and_splits_in_any_case(said, name):
    assert describe(said) is DATA_SETS[name]


def test_the_folder_of_a_set_in_place_of_that_of_all(tree, tmp_path):
    inside = tree("cityscapes") / "cityscapes"
    (fault,) = look("cityscapes", inside).faults
    assert f"set DETECTRON2_DATASETS to {tmp_path}" in fault.what


def test_the_command_line(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.delenv("SIRFP_DATASETS", raising=False)
    known = DATA_SETS["cityscapes"]
    monkeypatch.setitem(DATA_SETS, "ade20k", replace(DATA_SETS["ade20k"], url="https://example.org/ade"))
    folder = tree("cityscapes")
    assert main(["data", "check", "cityscapes_fine_sem_seg_val", "--partial", "--all", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["usable"] and shown["splits"]["train"] == {
        "registered": "cityscapes_fine_sem_seg_train",
        "official": 2975,
        "images": 4,
        "labelled": 4,
        "decoded": 4,
    }
    for path in folder.rglob("*labelTrainIds.png"):
        path.unlink()
    assert main(["data", "check", "cityscapes", "--partial"]) == 1
    out, err = capsys.readouterr()
    assert "unprepared, 4 of them" in out and known.url in out
    assert err == "error: cityscapes is not usable: 3 faults\n"
    assert main(["data", "prepare", "cityscapes", "--workers", "2"]) == 0
    assert "8 files made, 0 were there" in capsys.readouterr().out
    assert main(["data", "check", "cityscapes", "--partial"]) == 0
    assert main(["data", "check", "ade20k"]) == 1
    assert "https://example.org/ade" in capsys.readouterr().out
    assert main(["data", "check"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in DATA_SETS)


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["check", "cityscaps"], "did you mean cityscapes"),
        (["prepare", "ade20"], "did you mean ade20k"),
        (["prepare", "coco_stuff_10k"], "no such folder; COCO-Stuff-10K v1.1 comes from https://"),
        (["check", "camvid", "--images", "x"], "not both"),
        (["prepare"], "NAME; see sirfp data prepare --help"),
        (["check", "--all"], "name it"),
        (["check", "--labels", "x"], "--images FOLDER"),
        (["prepare", "camvid", "--workers", "0"], "at least 1"),
    ],
)
def test_mistakes_are_one_line(argv, what, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SIRFP_DATASETS", str(tmp_path))
    assert main(["data", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and what in err


def test_the_page_on_data_agrees_with_the_table():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for name, known in DATA_SETS.items():
        assert f"sirfp data check {name}" in page and known.url in page
        stem = known.splits[0].registered.removesuffix("train")
        names = ",".join(split.name for split in known.splits)
        counts = ", ".join(f"{split.name} {split.count}" for split in known.splits)
        assert f"| `{name}` | {known.task} | {known.classes} | {counts} | `{stem}{{{names}}}` |" in page
    table = [line for line in page.splitlines() if line.startswith("| `")]
    assert sorted(table) == sorted(known.row for known in DATA_SETS.values()), "copy the rows into the page's table"
