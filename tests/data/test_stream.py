"""Training data are the same after a resume: order, augmentation, and skipped batches."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sirfp.data.stream import Augmented, GroupedBatches, Shuffled, TrainingStream, readable, seed_all
from sirfp.errors import InputError


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_seeds_differ_by_every_part_and_repeat():
    seen = []
    for key in ((1, 2), (1, 3), (2, 2), (1, 2)):
        seed_all(*key)
        seen.append(draws())
    assert seen[0] == seen[3] and len(set(seen)) == 3 and len({s[0] for s in seen}) == 3


def stream(workers: int = 0, seed: int = 5) -> TrainingStream:
    records = [{"index": i, "width": 4 + i % 3, "height": 5} for i in range(10)]

    def mapper(record):
        if record["index"] == 7:
            return None
        return {"index": record["index"], "noise": (random.random(), float(np.random.rand()), torch.rand(1).item())}

    def batches(seed, skip):
        sampler = itertools.chain.from_iterable(
            np.random.default_rng((seed, epoch)).permutation(10).tolist() for epoch in itertools.count()
        )
        tall = [r["width"] <= r["height"] for r in records]
        grouped = GroupedBatches(sampler, 3, tall, skip)
        return DataLoader(Augmented(records, mapper, seed), batch_sampler=grouped, num_workers=workers, collate_fn=list)

    return TrainingStream(batches, seed)


def take(source: TrainingStream, number: int) -> list:
    return list(itertools.islice(iter(source), number))


def test_what_was_drawn_is_passed_over():
    whole = take(stream(), 12)
    first, second = stream(), stream(seed=8)
    assert take(first, 5) == whole[:5]
    second.load_state_dict(first.state_dict())
    assert take(second, 7) == whole[5:]
    assert second.state_dict() == {"seed": 5, "drawn": 12}


def test_processes_that_read_change_nothing():
    assert take(stream(workers=2), 6) == take(stream(), 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named_in_one_line(workers):
    """Also for errors in a worker process, whose message in PyTorch is a whole traceback."""

    def mapper(record):
        if record["file_name"] == "3.png":
            raise OSError("image file is truncated")
        return record

    records = [{"file_name": f"{i}.png"} for i in range(5)]
    grouped = GroupedBatches(range(5), 2)
    batches = readable(
        DataLoader(Augmented(records, mapper, 0), batch_sampler=grouped, num_workers=workers, collate_fn=list)
    )
    assert next(batches) == records[:2]
    with pytest.raises(InputError, match=r"^3.png: cannot be read as an image \(image file is truncated\); [^\n]*$"):
        next(batches)


def test_batches_are_of_one_shape_and_lose_nobody():
    batches = take(stream(), 20)
    assert all(len({item["index"] % 3 == 2 for item in batch if item["index"] != 7}) == 1 for batch in batches[:3])
    assert {item["index"] for batch in batches for item in batch} == set(range(10)) - {7}


def test_the_same_image_is_augmented_anew_each_time():
    noises = [item["noise"] for batch in take(stream(), 20) for item in batch]
    assert len(set(noises)) == len(noises)


def test_an_epoch_has_each_image_once_and_its_own_order():
    order = Shuffled(9, seed=1)
    first = list(order)
    order.epoch = 1
    assert sorted(first) == list(range(9)) and list(order) != first
    order.epoch, order.skip = 0, 4
    assert list(order) == first[4:]


def test_a_negative_seed_is_another_each_time_but_kept():
    np.random.seed(0)
    a, b = stream(seed=-1), stream(seed=-1)
    assert a.seed != b.seed
    b.load_state_dict(a.state_dict())
    assert take(a, 3) == take(b, 3)
