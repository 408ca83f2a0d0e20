"""diffusers: U-Nets, transformers and autoencoders of diffusion, with few layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from .subject import Subject, image

BLOCKS = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
HEADS = {"num_attention_heads": 4, "attention_head_dim": 12}
PATCHES = HEADS | {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2}
TIME = torch.tensor([5])


def made(kind: str, options: dict[str, Any], **inputs: Any) -> Subject:
    return Subject(getattr(diffusers, kind)(**options), inputs)


def words(width: int, count: int = 6) -> torch.Tensor:
    """Features of a text, (1, count, width)."""
    return torch.randn(1, count, width)


def unet(kind: str = "UNet2DConditionModel") -> Subject:
    options = {
        "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
        "cross_attention_dim": 24, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    }  # fmt: skip
    inputs: dict[str, Any] = {"sample": image(16, 16, channels=4), "timestep": TIME, "encoder_hidden_states": words(24)}
    if kind == "ControlNetModel":
        options |= {"conditioning_embedding_out_channels": (8, 16)}
        del options["sample_size"]
        inputs["controlnet_cond"] = image(32, 32)
    else:
        options["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
    return made(kind, options, **inputs)


def _models() -> dict[str, Callable[[], Subject]]:
    small = {
        "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
        "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    latent = image(8, 8, channels=4)
    return {
        "UNet2DModel": lambda: made("UNet2DModel", small, sample=image(16, 16), timestep=TIME),
        "UNet2DConditionModel": unet,
        "ControlNetModel": lambda: unet("ControlNetModel"),
        "AutoencoderKL": lambda: made("AutoencoderKL", BLOCKS, sample=image(32, 32)),
        "AutoencoderTiny": lambda: made(
            "AutoencoderTiny",
            {"encoder_block_out_channels": (16, 16), "num_encoder_blocks": (1, 2),
             "decoder_block_out_channels": (16, 16), "num_decoder_blocks": (2, 1)}, sample=image(32, 32)),
        "VQModel": lambda: made("VQModel", BLOCKS | {"num_vq_embeddings": 32}, sample=image(32, 32)),
        "DiTTransformer2DModel": lambda: made(
            "DiTTransformer2DModel", PATCHES | {"num_embeds_ada_norm": 10, "norm_num_groups": 8},
            hidden_states=latent, timestep=TIME, class_labels=torch.tensor([3])),
        "PixArtTransformer2DModel": lambda: made(
            "PixArtTransformer2DModel", PATCHES | {"cross_attention_dim": 48, "caption_channels": 24, "out_channels": 8,
                                                   "norm_num_groups": 8},
            hidden_states=latent, timestep=TIME, encoder_hidden_states=words(24)),
        "SD3Transformer2DModel": lambda: made(
            "SD3Transformer2DModel", PATCHES | {"joint_attention_dim": 24, "caption_projection_dim": 48,
                                                "pooled_projection_dim": 24, "out_channels": 4,
                                                "pos_embed_max_size": 8},
            hidden_states=latent, timestep=TIME, encoder_hidden_states=words(24),
            pooled_projections=torch.randn(1, 24)),
        "FluxTransformer2DModel": lambda: made(
            "FluxTransformer2DModel", HEADS | {"patch_size": 1, "in_channels": 4, "num_layers": 1,
                                               "num_single_layers": 1, "joint_attention_dim": 24,
                                               "pooled_projection_dim": 24, "axes_dims_rope": (4, 4, 4)},
            hidden_states=torch.randn(1, 16, 4), timestep=TIME / 10, encoder_hidden_states=words(24),
            pooled_projections=torch.randn(1, 24), img_ids=torch.rand(16, 3), txt_ids=torch.zeros(6, 3)),
        "SanaTransformer2DModel": lambda: made(
            "SanaTransformer2DModel", PATCHES | {
                "num_cross_attention_heads": 4, "cross_attention_head_dim": 12, "cross_attention_dim": 48,
                "caption_channels": 24, "patch_size": 1, "out_channels": 4},
            hidden_states=latent, timestep=TIME, encoder_hidden_states=words(24)),
        "AutoencoderDC": lambda: made(
            "AutoencoderDC",
            {"in_channels": 3, "latent_channels": 4, "attention_head_dim": 8,
             "encoder_block_types": ("ResBlock", "EfficientViTBlock"), "encoder_block_out_channels": (16, 32),
             "encoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), (5,)),
             "decoder_block_types": ("ResBlock", "EfficientViTBlock"), "decoder_block_out_channels": (16, 32),
             "decoder_layers_per_block": (1, 1), "decoder_qkv_multiscales": ((), (5,)),
             "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu"}, sample=image(32, 32)),
        "UNet1DModel": lambda: made(
            "UNet1DModel",
            {"block_out_channels": (32, 32, 64), "in_channels": 14, "out_channels": 14, "extra_in_channels": 64},
            sample=torch.randn(1, 14, 32), timestep=TIME),
        "T2IAdapter": lambda: Subject(
            diffusers.T2IAdapter(in_channels=3, adapter_type="full_adapter"), image(64, 64)),
    }  # fmt: skip


MODELS = _models()
