"""Small files and models in place of those that a reader of the documentation has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

import sirfp

CLASSES = ("road", "car")
NETWORK = "test_resnet"
"""What the pages' resnet18 is when their code runs."""


def files(folder: Path) -> None:
    """Writes the files that the pages' commands and code read: photos, label maps, boxes, weights."""
    random = np.random.default_rng(0)
    for part, count in (("photos/cat", 3), ("photos/dog", 3), ("data/images", 4), ("data/test", 2)):
        labels = folder / f"{part.replace('images', 'labels')}{'_labels' if part.endswith('test') else ''}"
        for place in (folder / part, labels):
            place.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            height, width = 96 + 8 * i, 128
            label = np.zeros((height, width), np.uint8)
            label[height // 3 :, width // 4 : width // 2 + 8 * i] = 1
            noise = random.integers(0, 60, (height, width, 3))
            image = (np.stack([label * 120, 90 + label * 60, 180 - label * 90], -1) + noise).astype(np.uint8)
            Image.fromarray(image).save(folder / part / f"{i}.jpg")
            if part.startswith("data"):
                Image.fromarray(label).save(labels / f"{i}.png")
    for split, images in (("train", folder / "data/images"), ("test", folder / "data/test")):
        (folder / f"data/{split}.json").write_text(json.dumps(boxes(images)))


def boxes(images: Path) -> dict[str, Any]:
    """Annotations in COCO's format: in each image one box of the second class."""
    found: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    for i, path in enumerate(sorted(images.glob("*.jpg")), 1):
        width, height = Image.open(path).size
        box = [width // 4, height // 3, width // 4, height - height // 3]
        found["images"].append({"id": i, "file_name": path.name, "width": width, "height": height})
        found["annotations"].append(
            {"id": i, "image_id": i, "category_id": 2, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        )
    return found


def small_detector() -> Any:
    """The config of a small RetinaNet of two classes, on a network of timm."""
    from sirfp.config import load_config

    return load_config(
        "projects/detection/configs/own/retinanet_r18_sirfp.yaml",
        ["MODEL.TIMM.NAME", NETWORK, "MODEL.TIMM.WEIGHTS", "", "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64",
         "MODEL.RETINANET.NUM_CLASSES", "2", "MODEL.RETINANET.NUM_CONVS", "1", "MODEL.FPN.OUT_CHANNELS", "16",
         *(word for split in ("TRAIN", "TEST") for word in (
             f"DATASETS.COCO.{split}_ANNOTATIONS", f"data/{split.lower()}.json",
             f"DATASETS.COCO.{split}_IMAGES", f"data/{'images' if split == 'TRAIN' else 'test'}"))],
    )  # fmt: skip


def weights_and_detector() -> dict[str, Any]:
    """A classifier's weights, and a small detector of Detectron2 with what it is called with."""
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    torch.save(timm.create_model(NETWORK).state_dict(), "resnet18.pth")
    cfg = small_detector()
    batches = [[{"image": torch.randint(0, 256, (3, 64, 96)).float(), "height": 64, "width": 96}] for _ in range(2)]
    given = {"cfg": cfg, "build_model": build_model, "batch": batches[0], "batches": batches}
    return given | {"model": build_model(cfg).eval()}


def cats_and_dogs() -> dict[str, Any]:
    """A classifier's weights."""
    torch.manual_seed(0)
    torch.save(timm.create_model(NETWORK, num_classes=2).state_dict(), "cats_and_dogs.pth")
    return {}


def pruned_digits() -> dict[str, Any]:
    """A pruned file in place of that of a page's training run."""
    model = timm.create_model(NETWORK, num_classes=10)
    plan = sirfp.prune(model, torch.zeros(1, 3, 32, 32), "magnitude", 0.5)
    sirfp.save("output/scenes_resnet18_sirfp/pruned.safetensors", model, plan)
    return {}


def pruned_networks() -> dict[str, Any]:
    """A pruned classifier, its ONNX file, and the folder of a run that pruned a detector."""
    from detectron2.modeling import build_model

    model = timm.create_model(NETWORK, num_classes=2).eval()
    sirfp.prune(model, torch.zeros(1, 3, 64, 64), "magnitude", keep_flops=0.5)
    sirfp.save("small.safetensors", model)
    # PyTorch's earlier exporter is quicker than the one that `sirfp export` uses
    torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), "small.onnx", input_names=["images"], dynamo=False)
    run = Path("output/own_retinanet_r18_sirfp")
    run.mkdir(parents=True)
    cfg = small_detector()
    (run / "config.yaml").write_text(cfg.dump())
    detector = build_model(cfg).eval()
    sirfp.prune(detector, [{"image": torch.zeros(3, 64, 64)}], "magnitude", keep_flops=0.7)
    sirfp.save(run / "pruned.safetensors", detector)
    return {}


def labelled_batches() -> dict[str, Any]:
    """Ten batches of images with the numbers of their classes."""
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.rand(40, 3, 64, 64), torch.randint(0, 10, (40,)))
    return {"loader": torch.utils.data.DataLoader(data, batch_size=4)}
