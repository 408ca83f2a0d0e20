"""Config keys of classification. `MODEL.TIMM` is the network; `DATASETS.IMAGES` adds your own labelled images."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from sirfp.config.metrics import check_metrics
from sirfp.config.projects import register_config
from sirfp.config.unused import NEEDS, Need, needs_hook
from sirfp.criteria.options import Within
from sirfp.data.classes import check_same_classes
from sirfp.data.images import check_images, known_classes
from sirfp.data.reading import reading_data
from sirfp.data.remarks import log_remarks
from sirfp.errors import InputError

from .policies import check_policy

CN = CfgNode
LOSSES = ("cross_entropy", "bce")


def _never(keys: tuple[str, ...], instead: str) -> Need:
    """Keys of Detectron2 or of its backbones that this project does not read."""
    return Need(keys, lambda cfg: False, f"classification does not read it; {instead}")


NEEDS["classification"] = (
    needs_hook("AverageWeights", "SOLVER.AVERAGE_DECAY"),
    Need(
        ("INPUT.AUGMENT.MIX_OFF_ITER",),
        lambda cfg: cfg.INPUT.AUGMENT.MIXUP or cfg.INPUT.AUGMENT.CUTMIX,
        "INPUT.AUGMENT.MIXUP and CUTMIX are 0",
    ),
    _never(("INPUT.MIN_SIZE_*", "INPUT.MAX_SIZE_*", "INPUT.CROP.ENABLED"), "sizes are INPUT.SIZE and INPUT.TEST_SIZE"),
    _never(("INPUT.FORMAT",), "INPUT.CHANNELS is the number of channels"),
    _never(("INPUT.RANDOM_FLIP",), "INPUT.AUGMENT.FLIP is the probability of a flip"),
    _never(("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"), "INPUT.MEAN and INPUT.STD, of values from 0 to 1, are its keys"),
    _never(("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.*"), "MODEL.TIMM.NAME is the network"),
    _never(("MODEL.TIMM.OPTIONS.*", "MODEL.TIMM.OUT_FEATURES", "MODEL.TIMM.OUTPUT_STRIDE", "MODEL.TIMM.NORM"),
           "it is for backbones of detectors and segmentors"),
    _never(("SOLVER.CLIP_GRADIENTS.*", "SOLVER.NESTEROV", "SOLVER.BIAS_LR_FACTOR", "SOLVER.WEIGHT_DECAY_NORM",
            "SOLVER.WEIGHT_DECAY_BIAS"), "SOLVER.OPTIMIZER_OPTIONS and SOLVER.DECAY_NORMS are its keys"),
    _never(("DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_*"), "it draws each image once in each epoch"),
)  # fmt: skip


@register_config("classification")
def add_classification_config(cfg: CfgNode) -> None:
    """Adds the keys for classifier, input, augmentation and optimizer."""
    cfg.MODEL.CLASSIFIER = CN()
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    cfg.MODEL.CLASSIFIER.DROP = 0.0  # share of features that dropout sets to zero before the classifier
    cfg.MODEL.CLASSIFIER.DROP_PATH = 0.0  # stochastic depth
    cfg.MODEL.CLASSIFIER.LOSS = "cross_entropy"  # or "bce": binary cross-entropy for each class
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.0

    # Empty or 0 means timm's value for the network.
    cfg.INPUT.CHANNELS = 0  # channels of an image: 1 (grey), 3 or 4 (with transparency)
    cfg.INPUT.SIZE = 0  # side of the square that training crops are resized to
    cfg.INPUT.TEST_SIZE = 0  # side of the square test image; 0: SIZE
    cfg.INPUT.CROP_PCT = 0.0  # share of a test image's shorter side that is cropped
    cfg.INPUT.INTERPOLATION = ""
    cfg.INPUT.MEAN = []
    cfg.INPUT.STD = []

    cfg.INPUT.AUGMENT = CN()
    cfg.INPUT.AUGMENT.SCALE = [0.08, 1.0]  # area of a random crop
    cfg.INPUT.AUGMENT.RATIO = [0.75, 1.3333]  # aspect ratio (width / height) of a random crop
    cfg.INPUT.AUGMENT.FLIP = 0.5  # probability of a horizontal flip
    cfg.INPUT.AUGMENT.COLOR_JITTER = 0.0
    cfg.INPUT.AUGMENT.POLICY = ""  # timm's name of an augmentation policy, e.g. "rand-m9-mstd0.5-inc1" for RandAugment
    cfg.INPUT.AUGMENT.ERASE = 0.0  # probability of random erasing
    cfg.INPUT.AUGMENT.MIXUP = 0.0  # alpha
    cfg.INPUT.AUGMENT.CUTMIX = 0.0  # alpha
    cfg.INPUT.AUGMENT.MIX_OFF_ITER = 0  # number of iterations after which mixup and cutmix end; 0: never

    cfg.SOLVER.OPTIMIZER = "sgd"  # a name of `timm.optim.list_optimizers()`
    cfg.SOLVER.OPTIMIZER_OPTIONS = []  # further arguments of the optimizer, as [name, value, ...]
    cfg.SOLVER.LAYER_DECAY = 0.0  # factor of the learning rate per layer towards the input; 0: one rate for all layers
    cfg.SOLVER.DECAY_NORMS = False  # True: weight decay also for biases and norms
    cfg.SOLVER.AVERAGE_DECAY = 0.9998  # decay of the moving average in the hook AverageWeights


def check_config(cfg: CfgNode) -> None:
    """Raises InputError if a value of classification's keys is out of range."""
    node, augment = cfg.MODEL.CLASSIFIER, cfg.INPUT.AUGMENT
    if node.LOSS not in LOSSES:
        raise InputError(f"MODEL.CLASSIFIER.LOSS must be one of {', '.join(LOSSES)}, got {node.LOSS!r}")
    Within(0, 1, "[)").check(node.LABEL_SMOOTHING, "MODEL.CLASSIFIER.LABEL_SMOOTHING")
    Within(0, 1, "[]").check(cfg.MODEL.TEACHER.WEIGHT, "MODEL.TEACHER.WEIGHT")
    Within(0, 1, "[)").check(cfg.SOLVER.AVERAGE_DECAY, "SOLVER.AVERAGE_DECAY")
    check_policy(augment.POLICY)
    if (augment.MIXUP or augment.CUTMIX) and cfg.SOLVER.IMS_PER_BATCH % 2:
        raise InputError(f"mixup and cutmix need an even SOLVER.IMS_PER_BATCH, got {cfg.SOLVER.IMS_PER_BATCH}")


def check_data(cfg: CfgNode, names: Sequence[str]) -> None:
    """Checks data sets against the config, before anything is built.

    Raises:
        InputError: a value is out of range, an image cannot be read, a set's number of classes differs from the
            config's, its classes from those of the first set, or files of predictions cannot name its images.
    """
    check_config(cfg)
    check_metrics(cfg, "classification")
    found: dict[str, Sequence[str]] = {}
    for name in names:
        with reading_data([name]):
            images = DatasetCatalog.get(name)
        if name in cfg.DATASETS.TEST:  # those of the training set are checked when its loader is built
            log_remarks(name, check_images(images))
        found |= {name: classes} if (classes := known_classes(images)) else {}
        if cfg.TEST.PREDICTIONS and name in cfg.DATASETS.TEST and not hasattr(images, "__getitem__"):
            raise InputError(
                f"TEST.PREDICTIONS is True, but data set {name!r} is a stream of DATASETS.IMAGES.READER, which tells "
                "no file names; set it to False, or name a folder or tar file in DATASETS.IMAGES.TEST"
            )
    check_same_classes(found, "name all classes in a file DATASETS.IMAGES.CLASS_MAP, one on each line")
    asked = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    for name, classes in found.items():
        there = len(classes)  # a class map may have fewer than the network
        if there > asked if cfg.DATASETS.IMAGES.CLASS_MAP else there != asked:
            raise InputError(
                f"MODEL.CLASSIFIER.NUM_CLASSES is {asked}, data set {name!r} has {there} classes; set it to {there}"
            )
