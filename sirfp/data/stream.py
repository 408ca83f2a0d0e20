"""Training data that depend only on a seed and the iteration, so that a resumed run trains on the same batches.

Detectron2's loaders start again when a run is resumed, with other crops in another order. Here the order comes from a
sampler with a seed of its own, and each item is augmented under a seed made of that and its position in the order. A
checkpoint holds the number of batches drawn; a resumed run skips these without reading their images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from sirfp.data.folders import unreadable
from sirfp.errors import InputError

ITEM, STEP, BATCH = 0, 1, 2  # what a seed is for


def seed_all(*key: int) -> None:
    """Seeds Python, NumPy and PyTorch from several numbers, each combination differently."""
    state = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


class TrainingStream:
    """Endless batches for a trainer; its state is the number of batches drawn.

    Args:
        batches: makes an iterable of batches from (seed, number of batches to skip).
        seed: of order and augmentation; negative: a random one, the same in all processes.

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
    """This process's part of one epoch in random order; the last few images of some epochs are left out.

    Args:
        size: images in the set.
        seed: of the order.

    Attributes:
        epoch: number of the next epoch.
        skip: images of this process to skip in it.
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
    """Batches of (position in the order, index); all images of a batch are wide, or all tall, where shapes are known.

    Args:
        sampler: an endless one of Detectron2's.
        size: images in a batch.
        tall: whether each image is taller than wide; None where batches mix both.
        skip: batches to skip.
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
    """Inputs of a model, made from records by a mapper, each under a seed of its own.

    Args:
        records: Detectron2's dicts.
        mapper: makes a model's input from a record; None where it cannot, and a random other record is taken.
        seed: of the run.
    """

    def __init__(self, records: Sequence[dict], mapper: Callable[[dict], dict | None], seed: int):
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> dict | InputError:
        """An input, or the InputError about its files: raised in a worker, it would be shown with its traceback."""
        place, index = key
        seed_all(self.seed, ITEM, place)
        others = np.random.default_rng((self.seed, place))
        try:
            while (item := self.mapper(self.records[index])) is None:
                index = int(others.integers(len(self.records)))
        except InputError as error:
            return error
        except (OSError, SyntaxError) as error:  # Pillow's, of files that it cannot read
            return unreadable(self.records[index]["file_name"], error)
        return item


def readable(batches: Iterable[list]) -> Iterator[list]:
    """Passes on batches of `Augmented` items; raises the first InputError among the items."""
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
