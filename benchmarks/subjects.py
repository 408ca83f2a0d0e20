"""Networks that the benchmarks measure, and facts about the machine on which times depend."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn

from sirfp.config import load_config
from sirfp.network.detectron import training_inputs
from sirfp.sources.source import from_zoo

SEGMENTATION = Path(__file__).resolve().parents[1] / "projects" / "segmentation" / "configs"


def deeplab_v3_r50() -> nn.Module:
    """DeepLabV3 on a ResNet-50, output stride 8, 19 classes, batch norm; random weights, on the CPU."""
    config = SEGMENTATION / "camvid" / "deeplab_v3_R_50_os8.yaml"
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19"]
    cfg = load_config(config, options, _segmentation_keys)
    torch.manual_seed(0)
    return build_model(cfg)


def deeplab_v3_plus_lite0() -> nn.Module:
    """DeepLabV3+ on EfficientNet-Lite0, 11 classes, batch norm; random weights, on the CPU."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.WEIGHTS", ""]
    cfg = load_config(SEGMENTATION / "camvid" / "deeplab_v3_plus_lite0.yaml", options, _segmentation_keys)
    torch.manual_seed(0)
    return build_model(cfg)


def mask_rcnn_r50() -> nn.Module:
    """Detectron2's Mask R-CNN on a ResNet-50 FPN, 80 classes, batch norm; random weights, on the CPU."""
    torch.manual_seed(0)
    options = ["MODEL.RESNETS.NORM", "BN"]
    return from_zoo("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", options).model


def retinanet_r50() -> nn.Module:
    """Detectron2's RetinaNet on a ResNet-50 FPN, 80 classes, batch norm; random weights, on the CPU."""
    torch.manual_seed(0)
    return from_zoo("COCO-Detection/retinanet_R_50_FPN_1x.yaml", ["MODEL.RESNETS.NORM", "BN"]).model


DETECTRON2 = {"deeplab": deeplab_v3_r50, "mask-rcnn": mask_rcnn_r50, "retinanet": retinanet_r50}


def image_size(name: str, size: Sequence[int] | None = None) -> tuple[int, int]:
    """(height, width) of images for one of `DETECTRON2` or of timm's networks: `size` if given, else a default."""
    if size or name in DETECTRON2:
        return tuple(size or (128, 256))
    return tuple(timm.get_pretrained_cfg(name).input_size[1:])


def build(name: str, size: Sequence[int] | None = None) -> tuple[nn.Module, Any]:
    """One of `DETECTRON2` or of timm's networks in evaluation mode, and an input of one image."""
    if name in DETECTRON2:
        return DETECTRON2[name]().eval(), images(1, *image_size(name, size))
    torch.manual_seed(0)
    return timm.create_model(name).eval(), torch.randn(1, 3, *image_size(name, size))


def trained(
    name: str, batch: int, height: int, width: int, device: str = "cpu"
) -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor], Any]:
    """A network, a function from a network to its loss on one random batch, and an input for counting.

    Args:
        name: as in `build`.
        batch: the number of images.
        height, width: of an image.
        device: of the network, and of images and labels where the network does not move them itself.
    """
    model, example = build(name, (height, width))
    model = model.to(device)
    if name not in DETECTRON2:
        example = example.to(device)
        x, y = torch.randn(batch, 3, height, width, device=device), torch.randint(0, 1000, (batch,), device=device)
        x = x.contiguous(memory_format=torch.channels_last)
        return model, lambda net: nn.functional.cross_entropy(net(x), y), example
    labelled = images(batch, height, width, labels=19 if name == "deeplab" else 0)
    if name != "deeplab":
        labelled = training_inputs(model, labelled)
    return model, lambda net: sum(net(labelled).values()), example


def _segmentation_keys(cfg) -> None:
    add_deeplab_config(cfg)
    cfg.INPUT.TRAIN_SIZE = [512, 1024]
    cfg.INPUT.COLOR_JITTER = 0.0


def images(count: int, height: int, width: int, labels: int = 0) -> list[dict[str, Any]]:
    """Random images in Detectron2's format, with label maps of `labels` classes if it is not 0."""
    batch = []
    for _ in range(count):
        item = {"image": torch.randint(0, 256, (3, height, width)).float(), "height": height, "width": width}
        if labels:
            item["sem_seg"] = torch.randint(0, labels, (height, width))
        batch.append(item)
    return batch


def machine() -> dict[str, Any]:
    """Facts about the machine on which times depend."""
    return {
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
    }
