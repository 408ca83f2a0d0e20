"""The smallest data set and network of each project: four pictures, labelled for all three tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

PROJECTS = Path(__file__).resolve().parents[1] / "projects"
SIDE, CLASSES = 64, ("bright", "dark")


def make_data(root: Path) -> Path:
    """Pictures of a bright and a dark square: `images`, `labels` (0, 1; 9 is ignored), `boxes.json`, `classes`."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    for folder in ("images", "labels", *(f"classes/{name}" for name in CLASSES)):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        picture = random.integers(100, 140, (SIDE, SIDE, 3), dtype=np.uint8)
        label = np.full((SIDE, SIDE), 9, np.uint8)
        for kind, (x, y) in enumerate(((4 + 3 * i, 4), (6, 34 + i))):
            picture[y : y + 24, x : x + 24], label[y : y + 24, x : x + 24] = 250 - 245 * kind, kind
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": kind + 1, "iscrowd": 0,
                                "bbox": [x, y, 24, 24], "area": 576})  # fmt: skip
            Image.fromarray(picture[y : y + 24, x : x + 24]).save(root / f"classes/{CLASSES[kind]}/{i}.png")
        Image.fromarray(picture).save(root / f"images/{i}.png")
        Image.fromarray(label).save(root / f"labels/{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(content))
    return root


def command(project: str, root: Path, name: str) -> list[str]:
    """The command line of a run of two iterations on such data, registered under a name; writes to `root/out`."""
    config, options = {
        "segmentation": (
            "folder/deeplab_v3_plus_r18",
            ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8",
             "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8", "INPUT.TRAIN_SIZE", "[32, 32]", "INPUT.MIN_SIZE_TRAIN", "(32, 48)",
             "DATASETS.FOLDER.NAME", name, "DATASETS.FOLDER.CLASSES", f"{list(CLASSES)}", "DATASETS.FOLDER.IGNORE", "9",
             *(word for split in ("TRAIN", "TEST") for word in (
                 f"DATASETS.FOLDER.{split}_IMAGES", str(root / "images"),
                 f"DATASETS.FOLDER.{split}_LABELS", str(root / "labels")))],
        ),
        "detection": (
            "own/retinanet_r18",
            ["MODEL.RETINANET.NUM_CLASSES", "2", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.FPN.OUT_CHANNELS", "16",
             "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATASETS.COCO.NAME", name,
             *(word for split in ("TRAIN", "TEST") for word in (
                 f"DATASETS.COCO.{split}_IMAGES", str(root / "images"),
                 f"DATASETS.COCO.{split}_ANNOTATIONS", str(root / "boxes.json")))],
        ),
        "classification": (
            "folder/efficientnet_lite0",
            ["MODEL.CLASSIFIER.NUM_CLASSES", "2", "INPUT.SIZE", "32", "DATASETS.IMAGES.NAME", name,
             "DATASETS.IMAGES.TRAIN", str(root / "classes"), "DATASETS.IMAGES.TEST", str(root / "classes")],
        ),
    }[project]  # fmt: skip
    return [
        "--num-gpus", "0", "--config-file", str(PROJECTS / project / "configs" / f"{config}.yaml"), *options,
        "DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", f"('{name}_test',)", "OUTPUT_DIR", str(root / "out"),
        "MODEL.TIMM.NAME", "test_resnet", "MODEL.TIMM.WEIGHTS", "", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2",
        "SOLVER.WARMUP_ITERS", "0", "TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "0",
    ]  # fmt: skip
