"""Config keys of segmentation, and checks that a model fits its data."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn

from sirfp.config.metrics import check_metrics
from sirfp.config.projects import register_config
from sirfp.config.unused import NEEDS, Need, prunes
from sirfp.criteria.options import Within
from sirfp.data.classes import check_same_classes
from sirfp.errors import InputError

from .inference import with_tta

NEEDS["segmentation"] = (
    Need(("TEST.OVERLAP",), lambda cfg: any(cfg.TEST.WINDOW), "TEST.WINDOW is [0, 0]: images are not divided"),
    Need(("TEST.AUG.SCALES", "TEST.AUG.FLIP"), lambda cfg: cfg.TEST.AUG.ENABLED, "TEST.AUG.ENABLED is False"),
    Need(
        ("SOLVER.GSRL.BETA", "SOLVER.GSRL.WINDOW", "SOLVER.GSRL.GAMMA"),
        lambda cfg: cfg.SOLVER.GSRL.WHEN != "never",
        "SOLVER.GSRL.WHEN is never",
    ),
    Need(
        ("SOLVER.GSRL.WHEN",),
        lambda cfg: cfg.SOLVER.GSRL.WHEN == "always" or prunes(cfg) or cfg.SIRFP.PLAN,
        "nothing is pruned, and pruned means from the first pruning on",
    ),
    Need(
        ("SOLVER.AUXILIARY.WEIGHT", "SOLVER.AUXILIARY.CHANNELS"),
        lambda cfg: cfg.SOLVER.AUXILIARY.FEATURE,
        "SOLVER.AUXILIARY.FEATURE is empty: there is no auxiliary head",
    ),
)


@register_config("segmentation")
def add_segmentation_config(cfg: CfgNode) -> None:
    """Adds the keys of DeepLab and of this project: augmentation, test, losses."""
    add_deeplab_config(cfg)
    # (height, width) of training images after cropping and padding. With this key, unlike with INPUT.CROP, DeepLab's
    # image pooling stays global, so that test images may have any size.
    cfg.INPUT.TRAIN_SIZE = [512, 512]
    cfg.INPUT.COLOR_JITTER = 0.0  # brightness, contrast and saturation get random factors in [1 - this, 1 + this]

    # TEST.AUG.ENABLED: evaluate at several scales; TEST.AUG.FLIP: also on mirror images (docs/method.md, section 4)
    cfg.TEST.AUG.SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    cfg.TEST.WINDOW = [0, 0]  # (height, width) of windows that slide over test images; zeros: whole images
    cfg.TEST.OVERLAP = 1 / 3  # least overlap of neighbouring windows, as a share of a window
    # Boundary IoU: width of the band along contours, as a share of an image's diagonal; 0: not measured. The usual
    # value is 0.02; for Cityscapes' large images 0.005.
    cfg.TEST.BOUNDARY_RATIO = 0.0
    cfg.TEST.FPS = False  # measure frames per second: the network alone, on whole images of SIRFP.INPUT_SIZE

    # The keys for training are outside MODEL, so that the commands of `sirfp` build the network without training heads.
    cfg.SOLVER.GSRL = CfgNode()
    # "never": the loss is MODEL.SEM_SEG_HEAD.LOSS_TYPE; "always": GSRL; "pruned": GSRL after the first pruning
    cfg.SOLVER.GSRL.WHEN = "never"
    cfg.SOLVER.GSRL.BETA = 0.9999  # beta of the effective number of a class's pixels
    cfg.SOLVER.GSRL.WINDOW = 9  # side, in pixels, of the square in which a rare class raises its neighbours' weight
    cfg.SOLVER.GSRL.GAMMA = 9.0  # how much the weight of a pixel grows with the network's uncertainty
    cfg.SOLVER.AUXILIARY = CfgNode()
    # Input of the auxiliary head: a feature of the backbone, e.g. "res4" or timm's "stage3"; "": no auxiliary head. The
    # backbone's OUT_FEATURES must contain this feature.
    cfg.SOLVER.AUXILIARY.FEATURE = ""
    cfg.SOLVER.AUXILIARY.WEIGHT = 0.4  # weight of the auxiliary loss; same loss function as the main head
    cfg.SOLVER.AUXILIARY.CHANNELS = 512  # channels of the auxiliary head's convolution


def check_data(cfg: CfgNode, names: Sequence[str]) -> None:
    """Checks data sets against the config, before anything is built.

    Raises:
        InputError: a set's number of classes differs from the config's, its classes from those of the first set, or a
            value in `TEST` or `INPUT.CROP`, or the ignored value, is not valid.
    """
    Within(0, 1, "[)").check(cfg.TEST.BOUNDARY_RATIO, "TEST.BOUNDARY_RATIO")
    check_metrics(cfg, "segmentation")
    if cfg.INPUT.CROP.ENABLED:
        raise InputError("INPUT.CROP.ENABLED must be False here; INPUT.TRAIN_SIZE is the size of training crops")
    with_tta(cfg, nn.Identity())  # checks the other values in TEST now instead of at the first evaluation
    classes, ignore = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if ignore < 0:
        raise InputError(f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE must be at least 0, got {ignore}; 255 is usual")
    if ignore < classes:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE {ignore} is the index of a class, which would not be learned; use one "
            f"outside 0..{classes - 1}"
        )
    found: dict[str, Sequence[str]] = {}
    for name in names:
        there = MetadataCatalog.get(name).get("stuff_classes")
        if there is None:
            raise InputError(f"data set {name!r} is not for semantic segmentation: it has no stuff_classes")
        if len(there) != classes:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}, data set {name!r} has {len(there)} classes; "
                f"set it to {len(there)}"
            )
        found[name] = there
    check_same_classes(found, "register them with the same classes in the same order")


def check_model(cfg: CfgNode, model: nn.Module) -> None:
    """Raises InputError unless the training size is a multiple of the model's largest stride."""
    shapes = model.backbone.output_shape()
    stride = max(shapes[name].stride for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES)
    stride = max(stride, model.backbone.size_divisibility)
    if any(side % stride or side < stride for side in cfg.INPUT.TRAIN_SIZE):
        size = tuple(cfg.INPUT.TRAIN_SIZE)
        raise InputError(f"INPUT.TRAIN_SIZE: both sides must be multiples of {stride}, the stride; got {size}")
