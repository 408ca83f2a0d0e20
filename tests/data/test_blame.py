"""Who is to blame: an assertion of an augmentation names INPUT, one of a data set the data, a file its name."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic
from PIL import Image
from tiny_tasks import command, make_data

from sirfp.data.reading import reading_data
from sirfp.data.stream import detection_stream
from sirfp.engine import launch, setup
from sirfp.errors import InputError


@pytest.fixture
def data(tmp_path):
    """A data set of two images; one of them is smaller than its record says."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    name = f"blame_{tmp_path.name}"
    records = [{"file_name": str(tmp_path / "a.png"), "image_id": i, "height": 32, "width": 32} for i in range(2)]
    DatasetCatalog.register(name, lambda: records)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = (name,), 0, 1, 1
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.INPUT.MIN_SIZE_TRAIN = (32,)
    yield cfg, records
    DatasetCatalog.remove(name)


def said(cfg) -> str:
    with pytest.raises(InputError) as error, reading_data(cfg.DATASETS.TRAIN):
        next(iter(detection_stream(cfg)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_augmentations_that_cannot_be_built(data):
    cfg, _ = data
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    assert said(cfg).startswith("training images cannot be augmented as the config says (short_edge_length must be")
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "square"
    assert "correct the keys of INPUT" in (text := said(cfg)) and "cannot be read" not in text


def test_assertions_without_text_are_named(data):
    cfg, _ = data
    name = f"{cfg.DATASETS.TRAIN[0]}_empty"
    DatasetCatalog.register(name, lambda: merge_to_panoptic([], []))
    cfg.DATASETS.TRAIN = (name,)
    text = said(cfg)
    DatasetCatalog.remove(name)
    assert "cannot be read: an assertion of merge_to_panoptic fails" in text


def test_augmentations_that_do_not_fit_an_image(data):
    cfg, records = data
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "relative", [2.0, 2.0]
    text = said(cfg)
    assert text.startswith(f"{records[0]['file_name']}: the image or its labels do not fit the config (")
    assert "correct the keys of INPUT" in text


def test_images_of_another_size_than_their_record(data):
    cfg, records = data
    for record in records:
        record["height"] = 40
    assert said(cfg).startswith(f"{records[0]['file_name']}: the image or its labels do not fit the config (Mismatched")


def test_data_sets_that_are_missing_or_empty(data):
    cfg, records = data
    records.clear()
    assert "cannot be read" in (text := said(cfg)) and "DETECTRON2_DATASETS" in text
    DatasetCatalog.remove(cfg.DATASETS.TRAIN[0])
    DatasetCatalog.register(cfg.DATASETS.TRAIN[0], Path("/nowhere/set.json").read_text)
    assert "cannot be read" in said(cfg)


def test_one_training_size_of_a_range_is_refused_by_its_key(tmp_path, clean_catalogs):
    words = command("segmentation", make_data(tmp_path), "sides")
    words[words.index("INPUT.MIN_SIZE_TRAIN") + 1] = "(64,)"
    from scripts import loaded

    with loaded("projects/segmentation/train_net.py") as script:
        args = launch.argument_parser().parse_args(words)
        with pytest.raises(InputError, match=r"INPUT.MIN_SIZE_TRAIN must be .*got \(64,\), write \(64, 64\)"):
            setup(args, script.add_segmentation_config)
