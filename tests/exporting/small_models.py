"""Small models to export, with weights under which their predictions differ, and images to predict on."""

from __future__ import annotations

from pathlib import Path

import torch

import sirfp
from sirfp.exporting.two_stages import predictors
from sirfp.sources.source import DetectronSource, from_config

CONFIGS = Path(__file__).parents[2] / "projects"
CLASSIFIER_CLASSES = 3
CLASSIFIER = ["--timm", "test_resnet", "--num-classes", str(CLASSIFIER_CLASSES), "--size", "64", "64"]
"""The words of a command that name the network of the fixture `pruned`."""
SMALL = "MODEL.TIMM.NAME test_resnet MODEL.TIMM.WEIGHTS".split()


def give_passing_scores(source: DetectronSource) -> DetectronSource:
    """Gives a detector weights whose scores differ and pass the threshold."""
    torch.manual_seed(0)
    torch.nn.init.normal_(source.model.head.cls_score.weight, std=0.05)
    torch.nn.init.zeros_(source.model.head.cls_score.bias)
    source.model.test_score_thresh = 0.4
    return source


def retinanet(*options: str) -> DetectronSource:
    """A small RetinaNet, or what the options make of it, with scores that pass."""
    words = "MODEL.FPN.OUT_CHANNELS 32 MODEL.RETINANET.NUM_CONVS 1 MODEL.RETINANET.NUM_CLASSES 3".split()
    config = CONFIGS / "detection/configs/scenes/retinanet_r18.yaml"
    torch.manual_seed(0)
    return give_passing_scores(from_config(str(config), [*SMALL, "", *words, *options], size=(64, 96)))


def faster_rcnn(*options: str) -> DetectronSource:
    """A small Faster R-CNN, or what the options make of it, with proposals, scores and masks that differ."""
    words = (
        "MODEL.FPN.OUT_CHANNELS 32 MODEL.ROI_BOX_HEAD.FC_DIM 64 MODEL.ROI_HEADS.NUM_CLASSES 3 "
        "MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.RPN.POST_NMS_TOPK_TEST 50 TEST.DETECTIONS_PER_IMAGE 20"
    ).split()
    config = CONFIGS / "detection/configs/bccd/faster_rcnn_r18.yaml"
    torch.manual_seed(0)
    source = from_config(str(config), [*SMALL, "", *words, *options], size=(64, 96))
    rpn, heads = source.model.proposal_generator.rpn_head, source.model.roi_heads
    torch.nn.init.normal_(rpn.objectness_logits.weight, std=0.3)
    torch.nn.init.normal_(rpn.anchor_deltas.weight, std=0.05)
    for predictor in predictors(source.model):
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.1)
        predictor.test_score_thresh = 0.3
    if heads.mask_on:
        torch.nn.init.normal_(heads.mask_head.predictor.weight, std=0.3)
    return source


def deeplab(*options: str) -> DetectronSource:
    """A small DeepLabV3+, or what the options make of it."""
    config = CONFIGS / "segmentation/configs/scenes/deeplab_v3_plus_r18.yaml"
    words = [*SMALL, "", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"]
    torch.manual_seed(0)
    source = from_config(str(config), [*words, *options], size=(64, 64))
    torch.nn.init.normal_(source.model.sem_seg_head.predictor.weight, std=0.5)
    return source


def pruned(source: DetectronSource) -> torch.nn.Module:
    """The model after half of its FLOPs have been removed."""
    model = source.fresh()
    sirfp.prune(model, source.example(), "magnitude", keep_flops=0.5)
    return model.eval()


def pictures(source: DetectronSource, folder: Path, *sizes: tuple[int, int]) -> list[torch.Tensor]:
    """Images of a folder as the model takes them, cut to sizes (height, width), each a batch of one."""
    files = sorted(folder.iterdir())[: len(sizes)]
    images = [source.raw(source.read([file]))[0][None] for file in files]
    return [image[:, :, :height, :width] for image, (height, width) in zip(images, sizes, strict=True)]
