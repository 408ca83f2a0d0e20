"""A data set is one entry: registered, listed, prepared, checked and advised on with nothing changed in sirfp."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from miniature_sets import miniature, repeat_to_image

from sirfp.cli import main
from sirfp.config import load_config, register_data
from sirfp.data.data_set import DATA_SETS, DataSet, Split, register_data_set
from sirfp.data.descriptions import advice, published_ids
from sirfp.data.folders import read_label
from sirfp.data.sets.camvid import CAMVID
from sirfp.errors import InputError

ENTRY = """
from sirfp.data import DataSet, PublishedIds, Raw, Split, register_data_set

IDS = PublishedIds(trained=(7, 8, 11), ids=range(34))  # ids 7, 8, 11 become classes 0, 1, 2, other ids 255


def split(name, count):
    return Split(
        name=name,
        registered=f"roads_sem_seg_{name}",
        count=count,
        images=f"images/{name}/*.jpg",
        labels=f"classes/{name}/{{stem}}.png",
        raw=(Raw(path=f"ids/{name}/{{stem}}_ids.png", read=IDS),),
    )


ROADS = register_data_set(
    DataSet(
        name="roads",
        title="Roads",
        task="segmentation",
        folder="roads-v1",
        splits=(split("train", 3), split("val", 2)),
        classes=3,
        names=("road", "sidewalk", "building"),
        ids=IDS.trained,
        url="https://roads.example.org",
        licence="CC BY 4.0",
        archives="roads-v1.zip",
    )
)
"""


@pytest.fixture
def root(tmp_path, monkeypatch, clean_catalogs):
    """The folder of all data sets, and beside it the file of the entry; what a test registers ends with it."""
    monkeypatch.setenv("SIRFP_DATASETS", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(DATA_SETS)
    (tmp_path / "roads.py").write_text(ENTRY)
    yield tmp_path
    DATA_SETS.clear()
    DATA_SETS.update(before)
    sys.modules.pop("roads", None)


def told(capsys, code, *words):
    ended = main(["data", *words])
    said = capsys.readouterr()
    assert ended == code, said.err
    return said.out + said.err


def test_one_entry_is_all(root, capsys):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    own = ["--import", str(root / "roads.py")]
    assert "roads-v1: nothing there" in told(capsys, 1, "check", "roads", *own)
    assert "Roads comes from https://roads.example.org (roads-v1.zip" in told(capsys, 2, "prepare", "roads", *own)
    miniature(DATA_SETS["roads"], root)
    assert "sirfp data prepare roads" in told(capsys, 1, "check", "roads", *own)

    cfg = load_config("", ["DATASETS.TRAIN", "('roads_sem_seg_train',)", "DATASETS.TEST", "('roads_sem_seg_val',)"])
    register_data(cfg)
    with pytest.raises(InputError, match="run: sirfp data check roads"):
        DatasetCatalog.get("roads_sem_seg_train")
    assert advice(["roads_sem_seg_val"]) == "; run: sirfp data check roads"

    done = json.loads(told(capsys, 0, "prepare", "roads", "--json", *own))
    assert (done["made"], done["kept"]) == (5, 0)
    labels = sorted((root / "roads-v1/classes/train").iterdir())
    assert np.array_equal(read_label(labels[0]), repeat_to_image((0, 1, 2, 255)))
    checked = json.loads(told(capsys, 0, "check", "roads_sem_seg_val", "--json", *own))
    assert checked["usable"] and checked["splits"]["train"]["labelled"] == 3
    listed = {one["name"]: one for one in json.loads(told(capsys, 0, "check", "--json", *own))["data_sets"]}
    assert listed["roads"]["usable"] and listed["roads"]["origin"].startswith("https://roads.example.org")

    metadata = MetadataCatalog.get("roads_sem_seg_train")
    assert metadata.stuff_classes == ["road", "sidewalk", "building"] and metadata.ignore_label == 255
    assert [one["sem_seg_file_name"] for one in DatasetCatalog.get("roads_sem_seg_train")] == list(map(str, labels))
    assert published_ids("roads_sem_seg_val") == (7, 8, 11)
    assert DATA_SETS["roads"].row == ("| `roads` | segmentation | 3 | train 3, val 2 | `roads_sem_seg_{train,val}` |")


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_sets_of_other_tasks(task, root, capsys):
    from detectron2.data import DatasetCatalog

    places = {
        "detection": {"images": "photos/*.jpg", "labels": "photos/boxes.json"},
        "classification": {"images": "photos/*/*.jpg"},
    }
    splits = (Split(name="train", registered="own_photos", count=3, **places[task]),)
    known = replace(CAMVID, name="own", task=task, folder="own", splits=splits, names=("cat", "dog"), classes=2, ids=())
    register_data_set(known)
    register_data(load_config(""))
    with pytest.raises(InputError, match="photos: no such folder; run: sirfp data check own"):
        DatasetCatalog.get("own_photos")
    miniature(known, root)
    assert told(capsys, 0, "check", "own") and len(DatasetCatalog.get("own_photos")) == 3


def test_a_name_stands_for_one_set(root):
    assert register_data_set(replace(CAMVID)) == CAMVID
    with pytest.raises(InputError, match="'camvid' is registered already: CamVid"):
        register_data_set(replace(CAMVID, classes=2, names=("a", "b")))
    with pytest.raises(InputError, match="'camvid_sem_seg_train' is a split of 'camvid'"):
        register_data_set(replace(CAMVID, name="camvid_again"))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"task": "segmentatoin"}, "task must be one of segmentation, detection, classification, got 'segmentatoin'"),
        ({"splits": ()}, "splits are needed"),
        ({"classes": 12}, "classes is 12, names has 11"),
        ({"ids": (1, 2)}, "classes is 11, ids has 2"),
        ({"names": ()}, "names of the classes are needed"),
        ({"splits": (replace(CAMVID.splits[0], images="train/*/*.png"),)}, "images lie in one folder"),
        ({"splits": (replace(CAMVID.splits[0], labels="labels/{parent}/{stem}.png"),)}, "their label maps in one"),
        ({"splits": (replace(CAMVID.splits[0], labels="labels/{stem}_L.png"),)}, "so labels end in {stem}.png"),
    ],
)
def test_fields_that_contradict_each_other_are_named(changed, what):
    with pytest.raises(InputError, match=what.replace("{", r"\{").replace("}", r"\}")):
        replace(CAMVID, **changed)
    with pytest.raises(TypeError):
        DataSet("camvid", "CamVid")
