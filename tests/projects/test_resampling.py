"""Class resampling: draws every class equally often with images that contain it, in one stream for all processes."""

import itertools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from sirfp.errors import InputError

PROJECT = str(Path(__file__).resolve().parents[2] / "projects" / "segmentation")
sys.path.insert(0, PROJECT)
from segmentation import resampling  # noqa: E402

sys.path.remove(PROJECT)

HOLDS = [[0], [0, 1], [0, 3], [0], [1, 0]]  # no image has class 2


@pytest.fixture
def records(tmp_path):
    found = []
    for i, classes in enumerate(HOLDS):
        label = np.full((4, 6), 255, np.uint8)
        label[0, : len(classes)] = classes
        Image.fromarray(label).save(tmp_path / f"{i}.png")
        found.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(tmp_path / f"{i}.png")})
    return found


@pytest.fixture
def index(records):
    return resampling.ClassIndex.of(resampling.classes_present(records, 4))


def draws(index, count: int, seed: int = 3) -> list[tuple[int, int]]:
    return [index.pair(n) for n in itertools.islice(resampling.ClassSampler(index, seed), count)]


def test_each_class_is_drawn_equally_often_with_images_that_hold_it(index):
    assert index.classes.tolist() == [0, 1, 3]
    drawn = draws(index, 300)
    assert Counter(label for _, label in drawn) == {0: 100, 1: 100, 3: 100}
    assert all(label in HOLDS[image] for image, label in drawn)
    assert {image for image, label in drawn if label == 0} == {0, 1, 2, 3, 4}
    for i in range(0, 300, 3):
        assert {label for _, label in drawn[i : i + 3]} == {0, 1, 3}
    assert drawn == draws(index, 300) != draws(index, 300, seed=4)


def test_processes_share_one_stream(index, monkeypatch):
    whole = draws(index, 12)
    monkeypatch.setattr(resampling.comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(resampling.comm, "get_rank", lambda rank=rank: rank)
        assert draws(index, 4) == whole[rank::3]


def test_processes_share_the_reading(records, monkeypatch):
    alone, parts = resampling.classes_present(records, 4), []
    monkeypatch.setattr(resampling.comm, "get_world_size", lambda: 2)
    for gather in (lambda part: [part, [np.zeros(4, bool)] * 2], lambda part: [parts[0], part]):
        rank = len(parts)
        monkeypatch.setattr(resampling.comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(resampling.comm, "all_gather", lambda part, g=gather: parts.append(part) or g(part))
        both = resampling.classes_present(records, 4)
    assert [len(part) for part in parts] == [3, 2]
    assert (both == alone).all()


def test_records_say_their_class(records, index):
    given = resampling.records_by_class(records, index)
    for number in range(len(given)):
        image, label = index.pair(number)
        assert given[number] == {**records[image], "sampled_class": label}
    assert len(given) == sum(map(len, HOLDS))


def test_what_cannot_be_sampled_is_refused(records):
    with pytest.raises(InputError, match="no training image holds any class"):
        resampling.ClassSampler(resampling.ClassIndex.of(np.zeros((3, 2), bool)))
    Path(records[1]["sem_seg_file_name"]).write_bytes(b"no picture")
    with pytest.raises(InputError, match="1.png"):
        resampling.classes_present(records, 4)


def test_loading_workers_share_the_stream_and_resume_it(records, index):
    cfg = get_cfg()
    cfg.merge_from_list(["SEED", 1, "SOLVER.IMS_PER_BATCH", 3, "DATALOADER.ASPECT_RATIO_GROUPING", False])
    seen = []
    for workers, passed in ((0, 0), (2, 0), (0, 2)):
        cfg.DATALOADER.NUM_WORKERS = workers
        stream = resampling.records_stream(
            cfg, resampling.records_by_class(records, index), dict, lambda seed: resampling.ClassSampler(index, seed)
        )
        stream.load_state_dict({"seed": 1, "drawn": passed})
        batches = [[x["sampled_class"] for x in batch] for batch in itertools.islice(stream, 4 - passed)]
        assert all(set(batch) == {0, 1, 3} for batch in batches)
        seen.append(batches)
    assert seen[0] == seen[1] and seen[0][2:] == seen[2]
