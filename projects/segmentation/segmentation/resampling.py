"""Class resampling: draws all classes equally often, then an image with the class (docs/method.md, section 5)."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from torch.utils.data import Sampler

from sirfp.data.folders import in_threads, read_label
from sirfp.data.stream import TrainingStream, records_stream
from sirfp.errors import InputError

SAMPLER = "ClassResampling"
"""Value of DATALOADER.SAMPLER_TRAIN for class resampling."""


@dataclass(frozen=True)
class ClassIndex:
    """The P pairs (image, class) such that the image contains the class, sorted by class.

    Attributes:
        images: (P,) of int32, image of each pair.
        starts: (K + 1,), position of the first pair of each class; the last entry is P.
    """

    images: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(present: np.ndarray) -> ClassIndex:
        """Builds the index from an array (I, K) of bool that is True if image i contains class k."""
        classes, images = np.nonzero(present.T)
        return ClassIndex(images.astype(np.int32), np.searchsorted(classes, np.arange(present.shape[1] + 1)))

    @property
    def classes(self) -> np.ndarray:
        """The classes that at least one image contains."""
        return np.flatnonzero(np.diff(self.starts))

    def pair(self, number: int) -> tuple[int, int]:
        """Returns image and class of a pair."""
        return int(self.images[number]), int(np.searchsorted(self.starts, number, side="right")) - 1


def classes_present(records: Sequence[dict[str, Any]], classes: int) -> np.ndarray:
    """Finds the classes in each label map; each process of a distributed run reads a part of the files.

    Args:
        records: records of the data set, with "sem_seg_file_name".
        classes: number of classes, K; labels of K or more are ignored.

    Returns:
        (I, K) of bool, True if image i contains class k.

    Raises:
        InputError: a label map cannot be read; raised on every process.
    """
    mine = list(range(comm.get_rank(), len(records), comm.get_world_size()))
    done = itertools.count(1)

    def read(number: int) -> np.ndarray:
        labels = np.unique(read_label(records[number]["sem_seg_file_name"]))
        text = "Reading which images hold which class: %d of %d label maps"
        log_every_n_seconds(logging.INFO, text % (next(done), len(mine)), n=5, name="sirfp")
        return np.isin(np.arange(classes), labels)

    try:
        found: Any = in_threads(read, mine)
    except InputError as error:  # sent to the other processes, which would otherwise wait forever
        found = error
    present = np.zeros((len(records), classes), dtype=bool)
    for rank, part in enumerate(comm.all_gather(found)):
        if isinstance(part, InputError):
            raise part
        for number, row in zip(range(rank, len(records), comm.get_world_size()), part, strict=True):
            present[number] = row
    return present


class ClassSampler(Sampler):
    """An endless stream of an index's pairs: each round has every class once, in random order, with a random image.

    As with Detectron2's samplers, the seed determines one stream for all processes, and each process takes its part.

    Args:
        index: the pairs.
        seed: seed of the stream, equal on all processes; by default a seed that depends on SEED.

    Raises:
        InputError: no image holds any class.
    """

    def __init__(self, index: ClassIndex, seed: int | None = None):
        if not len(index.images):
            raise InputError(f"DATALOADER.SAMPLER_TRAIN {SAMPLER}: no training image holds any class")
        self.index = index
        self.seed = comm.shared_random_seed() if seed is None else seed
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._stream(), self.rank, None, self.world_size)

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        classes = self.index.classes
        while True:
            for k in classes[torch.randperm(len(classes), generator=generator).numpy()]:
                low, high = self.index.starts[k], self.index.starts[k + 1]
                yield int(torch.randint(int(low), int(high), (), generator=generator))


def resampling_stream(cfg: CfgNode, mapper: Callable[[dict], dict]) -> TrainingStream:
    """Training data with class resampling; "sampled_class" of a record is the class for which it was drawn.

    Args:
        cfg: the whole config.
        mapper: see `SegmentationMapper`; the crop may not contain the sampled class.

    Raises:
        InputError: a label map cannot be read, or no label map contains any class.
    """
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes
    index = ClassIndex.of(classes_present(records, len(names)))
    missing = [name for k, name in enumerate(names) if k not in index.classes]
    logging.getLogger("sirfp").info(
        f"Resampling {len(index.classes)} classes over {len(records)} images"
        + (f"; no image holds {', '.join(missing)}" if missing else "")
    )
    return records_stream(cfg, records_by_class(records, index), mapper, lambda seed: ClassSampler(index, seed))


def records_by_class(records: Sequence[dict[str, Any]], index: ClassIndex) -> list[dict[str, Any]]:
    """Makes a record for each pair of an index, with the pair's class as "sampled_class"."""
    pairs = [index.pair(number) for number in range(len(index.images))]
    return [{**records[image], "sampled_class": label} for image, label in pairs]
