"""Models of Detectron2 that have no config in its zoo: other backbones, and the projects inside its package.

The backbones (ViTDet's, Swin, MViT) are smaller than the published ones, with every part that they have: windows,
relative positions, residual blocks, pooled attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import MViT, SimpleFeaturePyramid, SwinTransformer, ViT, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers
from torch import nn

NORM = partial(nn.LayerNorm, eps=1e-6)
SIZE = 128
"""Height and width of the input, which the position tables of the backbones are for."""
WIDTH = 64
DEEPLAB = "MODEL.SEM_SEG_HEAD"
RESNET = {
    "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_TYPE": "deeplab",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
    "INPUT.CROP.SIZE": [SIZE, SIZE],
    f"{DEEPLAB}.NUM_CLASSES": 19,
    f"{DEEPLAB}.NORM": "BN",
    f"{DEEPLAB}.ASPP_CHANNELS": 256,
    f"{DEEPLAB}.ASPP_DILATIONS": [6, 12, 18],
    f"{DEEPLAB}.CONVS_DIM": 256,
}
"""The keys that both DeepLabs share."""


def mask_rcnn(backbone: Any, in_features: Any) -> Any:
    """A lazy config of Mask R-CNN with an FPN over a backbone."""
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    model.backbone.bottom_up = backbone
    model.backbone.in_features = in_features
    model.backbone.square_pad = SIZE
    return model


def swin() -> nn.Module:
    backbone = LazyCall(SwinTransformer)(depths=[2] * 4, embed_dim=48, num_heads=[3, 6, 12, 24], drop_path_rate=0.1)
    return instantiate(mask_rcnn(backbone, ("p0", "p1", "p2", "p3")))


def mvit() -> nn.Module:
    scales = ("scale2", "scale3", "scale4", "scale5")
    backbone = LazyCall(MViT)(
        embed_dim=48, depth=6, num_heads=1, last_block_indexes=(0, 2, 4, 5), residual_pooling=True,
        drop_path_rate=0.1, norm_layer=NORM, out_features=scales, img_size=SIZE,
    )  # fmt: skip
    return instantiate(mask_rcnn(backbone, scales))


def vitdet(*, relative: bool, cascade: bool = False) -> nn.Module:
    """ViTDet, Mask R-CNN with a simple pyramid over a plain vision transformer.

    Args:
        relative: True for windows and relative positions, False for global attention without them.
        cascade: True for three box heads one after the other.
    """
    model = mask_rcnn(None, ())
    model.backbone = LazyCall(SimpleFeaturePyramid)(
        net=LazyCall(ViT)(
            img_size=SIZE, embed_dim=96, depth=4, num_heads=3, drop_path_rate=0.1, norm_layer=NORM,
            use_rel_pos=relative, window_size=7 if relative else 0, window_block_indexes=[0, 2],
            residual_block_indexes=[1],
        ),
        in_feature="last_feat", out_channels=WIDTH, scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LazyCall(LastLevelMaxPool)(), norm="LN", square_pad=SIZE,
    )  # fmt: skip
    model.proposal_generator.head.in_channels = WIDTH
    heads = model.roi_heads
    heads.mask_head.conv_norm, heads.mask_head.conv_dims = "LN", [WIDTH, WIDTH]
    heads.mask_head.input_shape.channels = WIDTH
    if cascade:
        for name in ("box_head", "box_predictor", "proposal_matcher"):
            del heads[name]
        overlaps = {0.5: (10, 5), 0.6: (20, 10), 0.7: (30, 15)}
        heads.update(
            _target_=CascadeROIHeads,
            box_heads=[_box_head() for _ in overlaps],
            box_predictors=[_box_predictor(*weights) for weights in overlaps.values()],
            proposal_matchers=[
                LazyCall(Matcher)(thresholds=[least], labels=[0, 1], allow_low_quality_matches=False)
                for least in overlaps
            ],
        )
    else:
        heads.box_head = _box_head()
        heads.box_predictor.input_shape.channels = 128
    return instantiate(model)


def _box_head() -> Any:
    shape = ShapeSpec(channels=WIDTH, height=7, width=7)
    return LazyCall(FastRCNNConvFCHead)(input_shape=shape, conv_dims=[WIDTH] * 2, fc_dims=[128], conv_norm="LN")


def _box_predictor(near: int, size: int) -> Any:
    transform = LazyCall(Box2BoxTransform)(weights=(near, near, size, size))
    return LazyCall(FastRCNNOutputLayers)(
        input_shape=ShapeSpec(channels=128), box2box_transform=transform, num_classes=80, cls_agnostic_bbox_reg=True
    )


def deeplab(*, plus: bool) -> nn.Module:
    """DeepLabV3+ at output stride 16 with separable convolutions, or DeepLabV3 at output stride 8."""
    from detectron2.projects.deeplab import add_deeplab_config

    cfg = get_cfg()
    add_deeplab_config(cfg)
    keys = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor", f"{DEEPLAB}.USE_DEPTHWISE_SEPARABLE_CONV": plus}
    if plus:
        keys |= {f"{DEEPLAB}.NAME": "DeepLabV3PlusHead", f"{DEEPLAB}.PROJECT_FEATURES": ["res2"]}
        keys |= {f"{DEEPLAB}.PROJECT_CHANNELS": [48], f"{DEEPLAB}.COMMON_STRIDE": 4, "MODEL.RESNETS.RES5_DILATION": 2}
    else:
        keys |= {f"{DEEPLAB}.NAME": "DeepLabV3Head", f"{DEEPLAB}.COMMON_STRIDE": 8}
        keys |= {"MODEL.RESNETS.RES4_DILATION": 2, "MODEL.RESNETS.RES5_DILATION": 4}
    features = ["res2", "res5"] if plus else ["res5"]
    keys |= {f"{DEEPLAB}.IN_FEATURES": features, "MODEL.RESNETS.OUT_FEATURES": features}
    return _built(cfg, RESNET | keys)


def point_rend(*, semantic: bool) -> nn.Module:
    """PointRend on Mask R-CNN, or on a semantic FPN."""
    from detectron2.projects.point_rend import add_pointrend_config

    cfg = get_cfg()
    add_pointrend_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    point, mask = "MODEL.POINT_HEAD", "MODEL.ROI_MASK_HEAD"
    if semantic:
        keys = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor", f"{DEEPLAB}.NAME": "PointRendSemSegHead"}
        keys |= {f"{DEEPLAB}.NUM_CLASSES": 19, f"{point}.NUM_CLASSES": 19, f"{point}.SUBDIVISION_NUM_POINTS": 256}
    else:
        keys = {f"{mask}.NAME": "PointRendMaskHead", f"{mask}.FC_DIM": 1024, f"{mask}.NUM_FC": 2}
        keys |= {f"{mask}.OUTPUT_SIDE_RESOLUTION": 7, f"{mask}.IN_FEATURES": ["p2"], f"{mask}.POINT_HEAD_ON": True}
        keys |= {f"{mask}.POOLER_TYPE": "", f"{point}.NUM_CLASSES": 80}
    return _built(cfg, keys | {f"{point}.IN_FEATURES": ["p2"]})


def _built(cfg: CfgNode, keys: Mapping[str, Any]) -> nn.Module:
    cfg.merge_from_list([word for pair in keys.items() for word in pair])
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    return build_model(cfg)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ViTDet, windows and relative positions": partial(vitdet, relative=True),
    "ViTDet, global attention": partial(vitdet, relative=False),
    "ViTDet, Cascade Mask R-CNN": partial(vitdet, relative=True, cascade=True),
    "Mask R-CNN, Swin": swin,
    "Mask R-CNN, MViT": mvit,
    "DeepLabV3+": partial(deeplab, plus=True),
    "DeepLabV3": partial(deeplab, plus=False),
    "PointRend, instances": partial(point_rend, semantic=False),
    "PointRend, semantic": partial(point_rend, semantic=True),
}
"""{name: builds the model with random weights}."""


def example() -> list[dict]:
    """An input of each of the models."""
    image = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 255
    return [{"image": image, "height": SIZE, "width": SIZE}]
