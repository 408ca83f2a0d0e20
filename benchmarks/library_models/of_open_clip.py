"""open_clip: image and text towers of CLIP, CoCa and SigLIP with few layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip import model as clip
from open_clip.coca_model import CoCa

from .subject import Subject, image

TEXT = {"context_length": 16, "vocab_size": 64, "width": 96, "heads": 4, "layers": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "ViT": {"image_size": 64, "patch_size": 16, "width": 96, "layers": 3, "head_width": 24},
    "ViT pooled": {"image_size": 64, "patch_size": 16, "width": 96, "layers": 3, "head_width": 24, "pool_type": "avg"},
    "ViT attentional pool": {
        "image_size": 64, "patch_size": 16, "width": 96, "layers": 3, "head_width": 24, "attentional_pool": True,
        "attn_pooler_heads": 4, "attn_pooler_queries": 8,
    },
    "ResNet": {"image_size": 64, "width": 32, "layers": (1, 1, 1, 1), "head_width": 32},
    "timm ConvNeXt": {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"},
    "timm ViT": {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token"},
}  # fmt: skip


def pair(tower: str) -> Subject:
    """Both towers; the output are features of images and texts."""
    side = TOWERS[tower]["image_size"]
    model = clip.CLIP(embed_dim=48, vision_cfg=dict(TOWERS[tower]), text_cfg=dict(TEXT))
    return Subject(model, {"image": image(side, side), "text": torch.randint(1, 63, (1, 16))})


def image_tower(tower: str) -> Subject:
    side = TOWERS[tower]["image_size"]
    return Subject(clip._build_vision_tower(48, dict(TOWERS[tower])), image(side, side))


def captions() -> Subject:
    vision = dict(TOWERS["ViT attentional pool"], output_tokens=True)
    text = dict(TEXT, embed_cls=True, output_tokens=True)
    decoder = dict(TEXT, attn_pooler_heads=4)
    model = CoCa(embed_dim=96, multimodal_cfg=decoder, text_cfg=text, vision_cfg=vision)
    torch.nn.init.normal_(model.text_decoder.text_projection, std=96**-0.5)  # which open_clip leaves uninitialised
    return Subject(model, {"image": image(64, 64), "text": torch.randint(1, 63, (1, 15))})


def _models() -> dict[str, Callable[[], Subject]]:
    known: dict[str, Callable[[], Subject]] = {f"CLIP {name}": lambda name=name: pair(name) for name in TOWERS}
    known |= {f"images of CLIP {name}": lambda name=name: image_tower(name) for name in ("ViT", "ResNet")}
    return known | {"CoCa": captions}


MODELS = _models()
