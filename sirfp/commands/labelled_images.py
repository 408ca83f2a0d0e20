"""Labelled images for criteria that need a loss: class folders for timm, the config's data set for Detectron2."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..sources.images import find_images
from ..sources.source import DetectronSource, Source

Loss = Callable[[Any, Any], Any]


def labelled_batches(args: argparse.Namespace, source: Source) -> tuple[Iterator[Any], Loss | None]:
    """Returns random labelled batches (seed `args.seed`) and the loss of a batch.

    The loss is None if the model computes its losses itself.

    Raises:
        InputError: there are no labels, or they do not fit the model; the message says where to put labels.
    """
    if isinstance(source, DetectronSource):
        if args.images:
            raise InputError(
                f"--images {args.images} has no annotations, which criterion {args.criterion!r} needs: leave --images "
                "out and name an annotated data set, DATASETS.TRAIN \"('NAME',)\" after the options"
            )
        return _from_data_set(args, source), None
    if not args.images:
        raise InputError(
            f"criterion {args.criterion!r} needs a loss, so labels: give --images FOLDER with one folder per class"
        )
    return _from_folders(args, source), _cross_entropy


def _cross_entropy(model, batch):
    from torch.nn.functional import cross_entropy

    return cross_entropy(model(batch[0]), batch[1])


def _from_folders(args: argparse.Namespace, source: Source) -> Iterator[Any]:
    """Batches (images, labels); a label is the index of the image's folder among the sorted folders."""
    import torch

    root, found = Path(args.images), find_images(args.images)
    wanted = getattr(source.model, "num_classes", None)
    classes = classes_of(root, found, wanted)
    if not classes:
        raise InputError(
            f"criterion {args.criterion!r} needs labels: --images must hold one folder for each of the {wanted} "
            f"classes of {source.name}, and {args.images} holds {_count(root, found)}"
        )
    drawn = list(classes.items())
    random.Random(args.seed).shuffle(drawn)
    for i in range(0, min(len(drawn), args.batches * args.batch), args.batch):
        paths, labels = zip(*drawn[i : i + args.batch], strict=True)
        yield source.read(paths), torch.tensor(labels, device=source.device)


def classes_of(root: Path, found: list[Path], classes: int | None) -> dict[Path, int]:
    """The class of each image of a folder with one folder per class: the index of its folder among the sorted folders.

    Args:
        root: the folder.
        found: its images.
        classes: number of the model's classes.

    Returns:
        {image: class}; empty if there are images beside the folders, or not as many folders as classes.
    """
    names = [path.relative_to(root).parts[0] for path in found]
    known = sorted(set(names))
    if any(path.parent == root for path in found) or len(known) != classes:
        return {}
    return dict(zip(found, map(known.index, names), strict=True))


def _count(root: Path, found: list[Path]) -> str:
    loose = sum(path.parent == root for path in found)
    folders = len({path.relative_to(root).parts[0] for path in found if path.parent != root})
    return f"{folders} folders with images" + (f" and {loose} images beside them" if loose else "")


def _from_data_set(args: argparse.Namespace, source: DetectronSource) -> Iterator[list[dict]]:
    """Batches of DATASETS.TRAIN with annotations; images are resized as in a test, without crops and flips."""
    from detectron2.data import DatasetMapper, get_detection_dataset_dicts
    from detectron2.data.detection_utils import build_augmentation

    from ..config.data import register_data
    from ..data.reading import reading_data

    cfg = source.cfg
    if not cfg.DATASETS.TRAIN:
        raise InputError(
            f"criterion {args.criterion!r} needs a loss, so annotations: name an annotated data set, "
            "DATASETS.TRAIN \"('NAME',)\" after the options"
        )
    register_data(cfg)
    try:
        with reading_data(cfg.DATASETS.TRAIN):
            dicts = get_detection_dataset_dicts(
                cfg.DATASETS.TRAIN,
                filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
                check_consistency=False,
            )
    except InputError as error:
        raise InputError(f"{error}; or prune without labels: --criterion sirfp --images FOLDER") from None
    options = DatasetMapper.from_config(cfg, is_train=True)
    mapper = DatasetMapper(**{**options, "augmentations": build_augmentation(cfg, is_train=False)})
    random.Random(args.seed).shuffle(dicts)
    for i in range(0, min(len(dicts), args.batches * args.batch), args.batch):
        yield [mapper(item) for item in dicts[i : i + args.batch]]
