"""Names in Detectron2's catalogs: lazy, repeatable, and fit for its mappers and evaluators."""

from itertools import count

import pytest

from sirfp.data import CAMVID_CLASSES
from sirfp.data.folders import read_label
from sirfp.data.registration import register_all, register_coco, register_sem_seg_folder
from sirfp.data.scenes import CLASSES, STUFF_CLASSES, make_scenes
from sirfp.errors import InputError

catalogs = pytest.importorskip("detectron2.data", reason="Detectron2 is not installed")
numbers = count()


@pytest.fixture
def name():
    """A name nobody has registered yet."""
    return f"test_registration_{next(numbers)}"


def test_registering_reads_nothing_and_may_be_repeated(tmp_path, clean_catalogs):
    before = set(catalogs.DatasetCatalog.list())
    register_all(tmp_path)
    register_all(tmp_path)
    added = set(catalogs.DatasetCatalog.list()) - before
    assert added == {
        *(f"camvid_sem_seg_{split}" for split in ("train", "val", "test")),
        *(
            f"{kind}_{split}"
            for kind in ("scenes_sem_seg", "scenes_det", "scenes_digits", "bccd_det", "cifar10", "imagenet")
            for split in ("train", "val")
        ),
        *(f"coco_stuff_10k_sem_seg_{split}" for split in ("train", "test")),
        *(f"pascal_context_59_sem_seg_{split}" for split in ("train", "val")),
    }
    for missing in added:
        with pytest.raises(InputError, match=str(tmp_path)):
            catalogs.DatasetCatalog.get(missing)


def test_a_name_stands_for_one_thing(tmp_path, name):
    register_sem_seg_folder(name, tmp_path, tmp_path, ["a", "b"])
    register_sem_seg_folder(name, str(tmp_path), tmp_path, ("a", "b"))
    with pytest.raises(InputError, match=f"{name}: this name already belongs to"):
        register_sem_seg_folder(name, tmp_path, tmp_path, ["a", "c"])
    with pytest.raises(InputError, match="already belongs to"):
        register_coco("coco_2017_val", tmp_path / "set.json", tmp_path)


def test_a_removed_name_is_free_again(tmp_path, name):
    register_sem_seg_folder(name, tmp_path, tmp_path, ["a", "b"])
    catalogs.DatasetCatalog.remove(name)
    register_sem_seg_folder(name, tmp_path, tmp_path, ["a", "c"])
    assert catalogs.MetadataCatalog.get(name).stuff_classes == ["a", "c"]


def test_scenes_load_as_segmentation_and_as_detection(tmp_path, clean_catalogs):
    made = make_scenes(tmp_path / "scenes", train=3, val=2, size=64)
    register_all(tmp_path)
    metadata = catalogs.MetadataCatalog.get("scenes_sem_seg_train")
    assert tuple(metadata.stuff_classes) == STUFF_CLASSES
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    assert (metadata.image_root, metadata.sem_seg_root) == (
        str(made.images("train")),
        str(made.labels("train")),
    )
    records = catalogs.DatasetCatalog.get("scenes_sem_seg_train")
    assert len(records) == 3
    detection = catalogs.DatasetCatalog.get("scenes_det_train")
    assert [record["file_name"] for record in detection] == [record["file_name"] for record in records]
    assert tuple(catalogs.MetadataCatalog.get("scenes_det_train").thing_classes) == CLASSES
    for seen, found in zip(records, detection, strict=True):
        labels = set(read_label(seen["sem_seg_file_name"]).ravel().tolist()) - {0}
        assert labels == {annotation["category_id"] + 1 for annotation in found["annotations"]}


def test_detectron2_maps_and_evaluates_scenes(tmp_path, clean_catalogs):
    """The labels, given as predictions, have a mIoU of 100."""
    torch = pytest.importorskip("torch")
    from detectron2.data import DatasetMapper
    from detectron2.evaluation import SemSegEvaluator

    make_scenes(tmp_path / "scenes", train=1, val=2, size=64)
    register_all(tmp_path)
    mapper = DatasetMapper(True, augmentations=[], image_format="RGB")
    evaluator = SemSegEvaluator("scenes_sem_seg_val", distributed=False, sem_seg_loading_fn=read_label)
    evaluator.reset()
    for record in catalogs.DatasetCatalog.get("scenes_sem_seg_val"):
        inputs = mapper(record)
        assert inputs["image"].shape == (3, 64, 64) and inputs["sem_seg"].shape == (64, 64)
        perfect = torch.nn.functional.one_hot(inputs["sem_seg"], len(STUFF_CLASSES)).permute(2, 0, 1)
        evaluator.process([record], [{"sem_seg": perfect}])
    results = evaluator.evaluate()["sem_seg"]
    assert results["mIoU"] == pytest.approx(100) and results["pACC"] == pytest.approx(100)


def test_camvid(real_data, clean_catalogs):
    register_all(real_data("camvid").parent)
    records = catalogs.DatasetCatalog.get("camvid_sem_seg_val")
    assert len(records) == 101 and (records[0]["width"], records[0]["height"]) == (480, 360)
    metadata = catalogs.MetadataCatalog.get("camvid_sem_seg_val")
    assert tuple(metadata.stuff_classes) == CAMVID_CLASSES and metadata.ignore_label == 11
    with pytest.raises(InputError, match="camvid/test: no such folder"):
        catalogs.DatasetCatalog.get("camvid_sem_seg_test")


def test_camvid_has_sky_above_and_road_below(real_data):
    """The class order is right: the top rows are mostly sky, building or tree, the bottom ones road."""
    folder = real_data("camvid") / "valannot"
    maps = [read_label(path) for path in sorted(folder.iterdir())[::10]]
    index = CAMVID_CLASSES.index
    share = [
        sum((part(labels) == index(wanted)).mean() for labels in maps for wanted in names) / len(maps)
        for part, names in (
            (lambda labels: labels[:60], ("sky", "building", "tree")),
            (lambda labels: labels[-60:], ("road", "pavement")),
        )
    ]
    assert min(share) > 0.7


def test_bccd(real_data, clean_catalogs):
    register_all(real_data("bccd").parent)
    assert len(catalogs.DatasetCatalog.get("bccd_det_val")) == 87
    assert catalogs.MetadataCatalog.get("bccd_det_val").thing_classes == ["RBC", "WBC", "Platelets"]
