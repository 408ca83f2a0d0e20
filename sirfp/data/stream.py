"""Training data that depend only on a seed and the iteration, so that a resumed run trains on the same batches.

Detectron2's loaders restart when a run is resumed, with another order and other crops. Here a sampler with a fixed seed
determines the order. The augmentation of each item is seeded by this seed and the item's position in the order. A
checkpoint holds the number of batches drawn so far; a resumed run skips these batches without reading their images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from sirfp.data.folders import unreadable
from sirfp.data.reading import does_not_fit
from sirfp.errors import InputError

ITEM, STEP, BATCH = 0, 1, 2  # purposes of seeds


def seed_all(*key: int) -> None:
    """Seeds Python, NumPy and PyTorch from several numbers; each combination gives another seed."""
    state = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


class TrainingStream:
    """Endless batches for a trainer; its state is the number of batches drawn.

    Args:
        batches: function (seed, number of batches to skip) that returns an iterable of batches.
        seed: seed of order and augmentation; negative for a random seed, the same in all processes.

    Attributes:
        drawn: number of batches drawn so far.
    """

    def __init__(self, batches: Callable[[int, int], Iterable[Any]], seed: int):
        self.batches = batches
        self.seed = seed if seed >= 0 else comm.shared_random_seed()
        self.drawn = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches(self.seed, self.drawn):
            self.drawn += 1
            yield batch

    def seed_step(self, iteration: int) -> None:
        """Seeds the random numbers of a training step (dropout, sampled proposals), differently in each process."""
        seed_all(self.seed, STEP, iteration, comm.get_rank())

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.seed, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seed, self.drawn = state["seed"], state["drawn"]


class Shuffled(Sampler):
    """This process's part of one epoch in random order.

    Each process gets the same number of images, so the last images of an epoch may be left out.

    Args:
        size: number of images in the data set.
        seed: seed of the order.

    Attributes:
        epoch: number of the next epoch.
        skip: number of this process's images to skip in the next epoch.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.epoch = self.skip = 0

    def __len__(self) -> int:
        return self.size // comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        mine = order[comm.get_rank() :: comm.get_world_size()][: len(self)]
        return iter(mine[self.skip :].tolist())


class GroupedBatches(Sampler):
    """Batches of (position in the order, index), optionally grouped by the images' orientation.

    Args:
        sampler: one of Detectron2's endless samplers.
        size: number of images per batch.
        tall: True for images that are taller than wide; a batch then has only tall or only wide images. None to mix
            both in a batch.
        skip: number of batches to skip.
    """

    def __init__(self, sampler: Iterable[int], size: int, tall: Sequence[bool] | None = None, skip: int = 0):
        self.sampler, self.size, self.tall, self.skip = sampler, size, tall, skip

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets: tuple[list, list] = ([], [])
        places = count(comm.get_rank(), comm.get_world_size())
        left = self.skip
        for place, index in zip(places, self.sampler, strict=False):
            bucket = buckets[self.tall[index] if self.tall is not None else 0]
            bucket.append((place, index))
            if len(bucket) == self.size:
                if left:
                    left -= 1
                else:
                    yield list(bucket)
                bucket.clear()


class Augmented(Dataset):
    """Maps records to inputs of a model; the augmentation of each input has a separate seed.

    Args:
        records: Detectron2's dicts.
        mapper: function from a record to an input of the model. If it returns None, another random record is used.
        seed: seed of the run.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict | None], seed: int):
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict | InputError:
        """Returns an input, or the InputError about its files.

        The error is returned because an error raised in a worker process is printed with a traceback.
        """
        place, index = key
        seed_all(self.seed, ITEM, place)
        others = np.random.default_rng((self.seed, place))
        try:
            while (item := self.mapper(self.records[index])) is None:
                index = int(others.integers(len(self.records)))
        except InputError as error:
            return error
        except (OSError, SyntaxError) as error:  # raised by Pillow for unreadable files
            return unreadable(self.records[index]["file_name"], error)
        except (AssertionError, SizeMismatchError) as error:  # raised by augmentations, and by checks of the size
            return does_not_fit(self.records[index]["file_name"], error)
        return item


def readable(batches: Iterable[list]) -> Iterator[list]:
    """Yields batches of `Augmented` items; raises the first InputError among the items."""
    for batch in batches:
        wrong = next((item for item in batch if isinstance(item, InputError)), None)
        if wrong is not None:
            raise wrong
        yield batch


def detection_stream(cfg: Any, mapper: Callable[[dict], dict | None] | None = None) -> TrainingStream:
    """Detectron2's training data, from DATASETS.TRAIN and DATALOADER.

    Args:
        cfg: the whole config.
        mapper: the augmentation; Detectron2's by default.
    """
    from detectron2.data.build import _train_loader_from_config
    from detectron2.data.samplers import TrainingSampler

    parts = _train_loader_from_config(cfg, mapper)
    records, sampler = parts["dataset"], parts["sampler"]

    def sampled(seed: int) -> Iterable[int]:
        return TrainingSampler(len(records), seed=seed) if isinstance(sampler, TrainingSampler) else sampler

    return records_stream(cfg, records, parts["mapper"], sampled)


def records_stream(
    cfg: Any,
    records: list[dict],
    mapper: Callable[[dict], dict | None],
    sampler: Callable[[int], Iterable[int]],
) -> TrainingStream:
    """A stream of mapped records.

    Args:
        cfg: the whole config; SEED, SOLVER.IMS_PER_BATCH and DATALOADER are read.
        records: Detectron2's dicts.
        mapper: the augmentation.
        sampler: makes an endless sampler of this process's indices from a seed.
    """
    from detectron2.data import DatasetFromList

    shaped = cfg.DATALOADER.ASPECT_RATIO_GROUPING and all("width" in r and "height" in r for r in records)
    tall = [r["width"] <= r["height"] for r in records] if shaped else None
    packed = DatasetFromList(records, copy=False)

    def batches(seed: int, skip: int) -> Iterator[list]:
        size = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        loader = DataLoader(
            Augmented(packed, mapper, seed),
            batch_sampler=GroupedBatches(sampler(seed), size, tall, skip),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
        )
        return readable(loader)

    return TrainingStream(batches, cfg.SEED)
