"""monai: networks for medical images and volumes, small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.networks import nets

from .subject import Subject, image

VOLUME = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
STEPS = {"channels": (8, 16, 32), "strides": (2, 2)}
CODER = {"channels": (8, 16, 32), "strides": (2, 2, 1)}
KERNELS = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [16, 24, 32]}
VIT = {"hidden_size": 96, "mlp_dim": 192, "num_layers": 3, "num_heads": 4}
DIFFUSION = {
    "spatial_dims": 2, "in_channels": 1, "num_res_blocks": 1, "channels": (16, 32), "attention_levels": (False, True),
    "norm_num_groups": 8, "num_head_channels": 8,
}  # fmt: skip
LATENT = {
    "spatial_dims": 2, "num_res_blocks": 1, "channels": (16, 32), "attention_levels": (False, True),
    "norm_num_groups": 8, "latent_channels": 4,
}  # fmt: skip
FEATURES = {"features": (8, 8, 16, 24, 32, 8)}
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "UNet 2d": ("UNet", VOLUME | STEPS | {"spatial_dims": 2, "num_res_units": 2}, (1, 32, 32)),
    "UNet": ("UNet", VOLUME | STEPS, (1, 16, 16, 16)),
    "AttentionUnet": ("AttentionUnet", VOLUME | STEPS, (1, 16, 16, 16)),
    "BasicUNet": ("BasicUNet", VOLUME | FEATURES, (1, 32, 32, 32)),
    "BasicUNetPlusPlus": ("BasicUNetPlusPlus", VOLUME | FEATURES | {"spatial_dims": 2}, (1, 32, 32)),
    "DynUNet": ("DynUNet", VOLUME | KERNELS, (1, 16, 16, 16)),
    "DynUNet deep": ("DynUNet", VOLUME | KERNELS | {"deep_supervision": True, "res_block": True}, (1, 16, 16, 16)),
    "SegResNet": ("SegResNet", VOLUME, (1, 16, 16, 16)),
    "SegResNetDS": ("SegResNetDS", VOLUME | {"init_filters": 8, "dsdepth": 2}, (1, 16, 16, 16)),
    "SegResNetVAE": ("SegResNetVAE", VOLUME | {"input_image_size": (16, 16, 16), "vae_nz": 16}, (1, 16, 16, 16)),
    "VNet": ("VNet", {"in_channels": 1, "out_channels": 3}, (1, 16, 16, 16)),
    "UNETR": ("UNETR", {"in_channels": 1, "out_channels": 3, "img_size": (32, 32, 32), "feature_size": 8,
                        "hidden_size": 48, "mlp_dim": 96, "num_heads": 4}, (1, 32, 32, 32)),
    "SwinUNETR": ("SwinUNETR", {"in_channels": 1, "out_channels": 3, "feature_size": 12, "window_size": 4},
                  (1, 64, 64, 32)),
    "SwinUNETR v2 2d": ("SwinUNETR", {"in_channels": 1, "out_channels": 3, "feature_size": 12, "window_size": 4,
                                      "spatial_dims": 2, "use_v2": True}, (1, 64, 64)),
    "ViT": ("ViT", VIT | {"in_channels": 1, "img_size": 64, "patch_size": 16, "spatial_dims": 2}, (1, 64, 64)),
    "ViT classifier": ("ViT", VIT | {"in_channels": 1, "img_size": (32, 32, 32), "patch_size": (16, 16, 16),
                                     "classification": True}, (1, 32, 32, 32)),
    "ViTAutoEnc": ("ViTAutoEnc", VIT | {"in_channels": 1, "img_size": (32, 32, 32), "patch_size": (16, 16, 16)},
                   (1, 32, 32, 32)),
    "DenseNet": ("DenseNet", VOLUME | {"init_features": 16, "growth_rate": 8, "block_config": (2, 2)},
                 (1, 16, 16, 16)),
    "SEResNet50": ("SEResNet50", {"spatial_dims": 2, "in_channels": 3, "num_classes": 5}, (3, 64, 64)),
    "ResNet": ("ResNet", {"block": "bottleneck", "layers": [1, 1, 1, 1], "block_inplanes": [16, 32, 48, 64],
                          "n_input_channels": 1, "num_classes": 5}, (1, 16, 16, 16)),
    "EfficientNetBN": ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False}, (3, 64, 64)),
    "FlexibleUNet": ("FlexibleUNet", {"in_channels": 3, "out_channels": 3, "backbone": "efficientnet-b0"}, (3, 64, 64)),
    "AutoEncoder": ("AutoEncoder", VOLUME | CODER | {"inter_channels": [24, 24]}, (1, 16, 16, 16)),
    "VarAutoEncoder": ("VarAutoEncoder", {"spatial_dims": 2, "in_shape": (1, 32, 32), "out_channels": 1,
                                          "latent_size": 8, "use_mean_at_inference": True} | CODER, (1, 32, 32)),
    "HighResNet": ("HighResNet", VOLUME, (1, 16, 16, 16)),
    "HoVerNet": ("HoVerNet", {"out_classes": 3}, (3, 256, 256)),
    "MedNeXt": ("MedNeXt", VOLUME | {"init_filters": 8, "kernel_size": 3, "blocks_down": (1, 1), "blocks_bottleneck": 1,
                                     "blocks_up": (1, 1)}, (1, 16, 16, 16)),
    "Quicknat": ("Quicknat", {"num_classes": 4, "num_filters": 16}, (1, 32, 32)),
    "Regressor": ("Regressor", {"in_shape": (1, 32, 32), "out_shape": (3,)} | STEPS, (1, 32, 32)),
    "PatchDiscriminator": ("PatchDiscriminator", {"spatial_dims": 2, "channels": 16, "in_channels": 3}, (3, 64, 64)),
    "RegUNet": ("RegUNet", {"spatial_dims": 3, "in_channels": 2, "num_channel_initial": 8, "depth": 2},
                (2, 16, 16, 16)),
    "LocalNet": ("LocalNet", {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 8, "extract_levels": (0, 2)},
                 (2, 32, 32)),
    "VoxelMorphUNet": ("VoxelMorphUNet", {"spatial_dims": 2, "in_channels": 2, "unet_out_channels": 16,
                                          "channels": (8, 8, 16, 16, 16, 16), "final_conv_channels": (8, 8)},
                       (2, 64, 64)),
    "VQVAE": ("VQVAE", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (16, 32),
                        "num_res_layers": 1, "num_res_channels": (16, 32), "embedding_dim": 16,
                        "downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2},
              (1, 32, 32)),
    "AutoencoderKL": ("AutoencoderKL", LATENT, (1, 32, 32)),
}  # fmt: skip
"""(class, options, size of an input without its batch) of each network."""


def network(name: str) -> Subject:
    kind, options, (channels, *size) = NETWORKS[name]
    return Subject(getattr(nets, kind)(**options), image(*size, channels=channels))


def diffusion(**options: Any) -> Subject:
    inputs: dict[str, Any] = {"x": image(32, 32, channels=1), "timesteps": torch.tensor([5])}
    if options:
        inputs["context"] = torch.randn(1, 3, 24)
    return Subject(nets.DiffusionModelUNet(**DIFFUSION, out_channels=1, **options), inputs)


def _models() -> dict[str, Callable[[], Subject]]:
    known: dict[str, Callable[[], Subject]] = {name: lambda name=name: network(name) for name in NETWORKS}
    known["DiffusionModelUNet"] = diffusion
    known["DiffusionModelUNet conditioned"] = lambda: diffusion(with_conditioning=True, cross_attention_dim=24)
    return known


MODELS = _models()
