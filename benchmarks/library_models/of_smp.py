"""segmentation-models-pytorch: every decoder, and ten further encoders of the U-Net."""

from __future__ import annotations

from collections.abc import Callable

import segmentation_models_pytorch as smp

from .subject import Subject, image

DECODERS = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet".split()
ENCODERS = """resnet50 resnext50_32x4d mobilenet_v2 efficientnet-b0 vgg11_bn densenet121 mobileone_s0 xception dpn68
se_resnet50 tu-convnext_atto tu-resnest14d""".split()


def segmentor(decoder: str, encoder: str = "resnet18", side: int = 64, **options) -> Subject:
    model = getattr(smp, decoder)(encoder, encoder_weights=None, classes=5, **options)
    return Subject(model, image(side, side))


def _models() -> dict[str, Callable[[], Subject]]:
    known: dict[str, Callable[[], Subject]] = {
        f"{name} resnet18": lambda name=name: segmentor(name, side=128 if name == "PAN" else 64) for name in DECODERS
    }
    known["Segformer mit_b0"] = lambda: segmentor("Segformer", "mit_b0")
    known["DPT tu-vit_tiny_patch16_224"] = lambda: segmentor("DPT", "tu-vit_tiny_patch16_224", 224)
    known["Unet resnet18 scse aux"] = lambda: segmentor(
        "Unet", decoder_attention_type="scse", aux_params={"classes": 4, "dropout": 0.2}
    )
    return known | {f"Unet {name}": lambda name=name: segmentor("Unet", name) for name in ENCODERS}


MODELS = _models()
