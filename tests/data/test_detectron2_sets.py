"""Public data sets in Detectron2: its names, folders and loaders, and sirfp's for sets that it lacks."""

from dataclasses import replace

import pytest
from miniature_sets import MAKERS

from sirfp.data.descriptions import DATA_SETS
from sirfp.data.registration import register_described
from sirfp.data.splits import files_of
from sirfp.errors import InputError

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:pycocotools")
PREPARED = ("cityscapes", "ade20k", "coco_stuff_10k", "pascal_context")


@pytest.mark.parametrize("name", PREPARED)
def test_detectron2_reads_what_is_prepared(name, trees, request):
    from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, datasets
    from detectron2.data.datasets.cityscapes import load_cityscapes_semantic

    known = DATA_SETS[name]
    folder = trees / known.folder
    if name == "cityscapes":
        records = load_cityscapes_semantic(str(folder / "leftImg8bit/train"), str(folder / "gtFine/train"))
    elif name == "ade20k":
        places = (str(folder / part / "training") for part in ("annotations_detectron2", "images"))
        records = datasets.load_sem_seg(*places, gt_ext="png", image_ext="jpg")
    else:
        splits = tuple(replace(split, registered=f"test_{split.registered}") for split in known.splits)
        register_described(replace(known, splits=splits), folder)
        for split in splits:
            request.addfinalizer(lambda name=split.registered: DatasetCatalog.remove(name))
        records = DatasetCatalog.get(splits[0].registered)
        assert len(MetadataCatalog.get(splits[0].registered).stuff_classes) == known.classes
    files = files_of(folder, known.splits[0], known.task)
    assert {record["sem_seg_file_name"] for record in records} == {str(found.label) for found in files}
    labels = DatasetMapper(True, augmentations=[], image_format="RGB")(records[0])["sem_seg"].unique().tolist()
    assert labels[0] == 0 and labels[-1] == 255 and len(labels) > 3


@pytest.mark.parametrize("name", [name for name, known in DATA_SETS.items() if known.detectron2])
def test_names_and_places_are_detectron2s(name):
    from detectron2.data import MetadataCatalog

    known = DATA_SETS[name]
    for split in known.splits:
        metadata = MetadataCatalog.get(split.registered)
        images = metadata.image_dir if name == "cityscapes" else metadata.image_root
        assert images.rstrip("/").endswith(f"{known.folder}/{split.images.partition('/*')[0]}")
        classes = metadata.thing_classes if name == "coco" else metadata.stuff_classes
        assert len(classes) == known.classes
        if known.task == "segmentation":
            assert metadata.ignore_label == known.ignore


@pytest.mark.parametrize("name", PREPARED)
def test_training_on_unprepared_labels_names_the_check(name, tmp_path, request):
    """Of sets that sirfp registers when they are read, of Detectron2's own in one line of the engine."""
    from detectron2.data import DatasetCatalog

    from sirfp.data.reading import reading_data

    known, message = DATA_SETS[name], f"sirfp data check {name}"
    if known.detectron2:
        with pytest.raises(InputError, match=message), reading_data([known.splits[0].registered]):
            raise FileNotFoundError("labelTrainIds.png")
        return
    split = replace(known.splits[0], registered=f"test_unprepared_{name}")
    register_described(replace(known, splits=(split,)), MAKERS[name](tmp_path))
    request.addfinalizer(lambda: DatasetCatalog.remove(split.registered))
    with pytest.raises(InputError, match=message):
        DatasetCatalog.get(split.registered)
