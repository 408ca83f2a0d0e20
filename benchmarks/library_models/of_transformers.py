"""transformers: vision models for classification, detection, segmentation, depth, video and more, with few layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from .subject import Subject, image

VIT = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
MLP = {"intermediate_size": 192}
SEEN = {"image_size": 64, "patch_size": 16}
DETR = {
    "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_queries": 10,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "d_model": 64,
}  # fmt: skip
HYBRID = DETR | {"encoder_layers": 1, "encoder_hidden_dim": 64, "encoder_in_channels": [32, 48, 64],
                 "decoder_in_channels": [64, 64, 64], "num_denoising": 0}  # fmt: skip
STAGES = {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "num_attention_heads": [1, 2, 4, 4]}

PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTForImageClassification": ("ViTConfig", VIT | MLP | SEEN),
    "ViTForMaskedImageModeling": ("ViTConfig", VIT | MLP | SEEN),
    "ViTModel": ("ViTConfig", VIT | MLP | SEEN),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", VIT | MLP | SEEN),
    "BeitForImageClassification": ("BeitConfig", VIT | MLP | SEEN | {"use_relative_position_bias": True}),
    "Data2VecVisionForImageClassification": ("Data2VecVisionConfig", VIT | MLP | SEEN),
    "Dinov2ForImageClassification": ("Dinov2Config", VIT | SEEN),
    "Dinov2Model": ("Dinov2Config", VIT | SEEN | {"use_swiglu_ffn": True}),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", VIT | SEEN),
    "DINOv3ViTModel": ("DINOv3ViTConfig", VIT | MLP | SEEN),
    "DINOv3ConvNextModel": ("DINOv3ConvNextConfig", STAGES),
    "CLIPVisionModel": ("CLIPVisionConfig", VIT | MLP | SEEN),
    "SiglipVisionModel": ("SiglipVisionConfig", VIT | MLP | SEEN),
    "IJepaForImageClassification": ("IJepaConfig", VIT | MLP | SEEN),
    "ViTMSNForImageClassification": ("ViTMSNConfig", VIT | MLP | SEEN),
    "VitDetModel": ("VitDetConfig", VIT | SEEN | {"window_block_indices": [0], "window_size": 2,
                                                  "use_relative_position_embeddings": True, "pretrain_image_size": 64}),
    "YolosForObjectDetection": ("YolosConfig", VIT | MLP | SEEN | {"image_size": [64, 64], "num_detection_tokens": 8}),
    "Aimv2VisionModel": ("Aimv2VisionConfig", VIT | MLP | SEEN),
    "DPTForSemanticSegmentation": ("DPTConfig", VIT | MLP | SEEN | {"backbone_out_indices": [0, 1, 2],
                                                               "neck_hidden_sizes": [16, 32, 48],
                                                               "fusion_hidden_size": 32}),
    "ConvNextForImageClassification": ("ConvNextConfig", STAGES),
    "ConvNextV2ForImageClassification": ("ConvNextV2Config", STAGES),
    "ResNetForImageClassification": ("ResNetConfig", STAGES | {"embedding_size": 32}),
    "RegNetForImageClassification": ("RegNetConfig", STAGES | {"embedding_size": 32, "groups_width": 16}),
    "BitForImageClassification": ("BitConfig", {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1],
                                                "embedding_size": 32, "num_groups": 8}),
    "MobileNetV1ForImageClassification": ("MobileNetV1Config", {"depth_multiplier": 0.5}),
    "MobileNetV2ForImageClassification": ("MobileNetV2Config", {"depth_multiplier": 0.5}),
    "MobileNetV2ForSemanticSegmentation": ("MobileNetV2Config", {"depth_multiplier": 0.5}),
    "MobileViTForImageClassification": ("MobileViTConfig", {"hidden_sizes": [48, 64, 80], "image_size": 64}),
    "MobileViTForSemanticSegmentation": ("MobileViTConfig", {"hidden_sizes": [48, 64, 80], "image_size": 64}),
    "MobileViTV2ForImageClassification": ("MobileViTV2Config", {"base_attn_unit_dims": [32, 48, 64], "image_size": 64}),
    "PoolFormerForImageClassification": ("PoolFormerConfig", STAGES),
    "PvtForImageClassification": ("PvtConfig", PYRAMID | {"image_size": 64}),
    "PvtV2ForImageClassification": ("PvtV2Config", PYRAMID | {"image_size": 64}),
    "SegformerForImageClassification": ("SegformerConfig", PYRAMID),
    "SegformerForSemanticSegmentation": ("SegformerConfig", PYRAMID | {"decoder_hidden_size": 48}),
    "GLPNForDepthEstimation": ("GLPNConfig", PYRAMID | {"decoder_hidden_size": 32}),
    "SwinForImageClassification": ("SwinConfig", WINDOWS),
    "SwinForMaskedImageModeling": ("SwinConfig", WINDOWS | {"encoder_stride": 8}),
    "Swinv2ForImageClassification": ("Swinv2Config", WINDOWS),
    "DonutSwinForImageClassification": ("DonutSwinConfig", WINDOWS),
    "Swin2SRForImageSuperResolution": ("Swin2SRConfig", WINDOWS | {"window_size": 8}),
    "LevitForImageClassification": ("LevitConfig", {"hidden_sizes": [48, 64, 96], "depths": [1, 1, 1],
                                                    "image_size": 128}),
    "CvtForImageClassification": ("CvtConfig", {"embed_dim": [32, 48, 96], "num_heads": [1, 3, 6], "depth": [1, 2, 3]}),
    "FocalNetForImageClassification": ("FocalNetConfig", {"embed_dim": 32, "depths": [1, 1, 1, 1], "image_size": 64}),
    "EfficientNetForImageClassification": ("EfficientNetConfig", {"width_coefficient": 1.0, "depth_coefficient": 1.0,
                                                                  "hidden_dim": 1280, "image_size": 64}),
    "HieraForImageClassification": ("HieraConfig", {"embed_dim": 32, "image_size": [64, 64], "depths": [1, 1, 2, 1],
                                                    "masked_unit_size": [8, 8]}),
    "TextNetForImageClassification": ("TextNetConfig", {
        "conv_layer_kernel_sizes": [[[3, 3], [3, 1]], [[3, 3], [1, 3]], [[3, 3]], [[3, 3], [3, 1]]],
        "conv_layer_strides": [[1, 2], [2, 1], [2], [2, 1]], "hidden_sizes": [32, 32, 48, 64, 96],
        "stem_out_channels": 32}),
    "SwiftFormerForImageClassification": ("SwiftFormerConfig", {"embed_dims": [24, 32, 48, 64],
                                                                "depths": [1, 1, 1, 1]}),
    "HGNetV2ForImageClassification": ("HGNetV2Config", {"stage_numb_of_layers": [2, 2, 2, 2],
                                                        "stage_num_blocks": [1, 1, 1, 1]}),
    "PPLCNetForImageClassification": ("PPLCNetConfig", {"scale": 0.5}),
    "SuperPointForKeypointDetection": ("SuperPointConfig", {}),
}  # fmt: skip
"""{model: (its configuration, options)}; the input is one image of 64 x 64 pixels."""

SIDES = {"LevitForImageClassification": 128, "MobileViTV2ForImageClassification": 64}

VIDEO = {"num_frames": 4, "image_size": 32, "patch_size": 16}
VIDEOS: dict[str, tuple[str, dict[str, Any]]] = {
    "VideoMAEForVideoClassification": ("VideoMAEConfig", VIT | MLP | VIDEO),
    "TimesformerForVideoClassification": ("TimesformerConfig", VIT | MLP | VIDEO),
    "VivitForVideoClassification": ("VivitConfig", VIT | MLP | {"num_frames": 4, "image_size": 32}),
}
"""The input is a video of four frames of 32 x 32 pixels."""

BACKBONES: dict[str, Callable[[], Any]] = {
    "ResNet": lambda: transformers.ResNetConfig(
        **STAGES, embedding_size=32, out_features=["stage2", "stage3", "stage4"]),
    "ResNet last": lambda: transformers.ResNetConfig(**STAGES, embedding_size=32, out_features=["stage4"]),
    "Swin": lambda: transformers.SwinConfig(
        image_size=64, embed_dim=32, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"]),
    "DINOv2": lambda: transformers.Dinov2Config(
        **VIT | {"num_hidden_layers": 4}, image_size=56, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False),
    "ViTPose": lambda: transformers.VitPoseBackboneConfig(**VIT, image_size=[64, 64], patch_size=[16, 16]),
    "ViTDet": lambda: transformers.VitDetConfig(
        **VIT, image_size=64, patch_size=16, num_channels=4, out_features=["stage3"]),
    "RT-DETR ResNet": lambda: transformers.RTDetrResNetConfig(
        embedding_size=16, hidden_sizes=[24, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="bottleneck",
        out_features=["stage2", "stage3", "stage4"]),
    "HGNetV2": lambda: transformers.HGNetV2Config(
        hidden_sizes=[24, 32, 48, 64], stage_out_channels=[24, 32, 48, 64],
        stage_in_channels=[48, 24, 32, 48], stage_mid_channels=[16, 16, 24, 24],
        stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[2, 2, 2, 2], out_features=["stage2", "stage3", "stage4"]),
}  # fmt: skip
JOINED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "DetrForObjectDetection": ("DetrConfig", "ResNet last", DETR),
    "DetrForSegmentation": ("DetrConfig", "ResNet", DETR | {"encoder_attention_heads": 8,
                                                            "decoder_attention_heads": 8}),
    "ConditionalDetrForObjectDetection": ("ConditionalDetrConfig", "ResNet last", DETR),
    "TableTransformerForObjectDetection": ("TableTransformerConfig", "ResNet last", DETR),
    "DabDetrForObjectDetection": ("DabDetrConfig", "ResNet last", {
        k: v for k, v in DETR.items() if k != "d_model"} | {"hidden_size": 64}),
    "DeformableDetrForObjectDetection": ("DeformableDetrConfig", "ResNet", DETR | {"num_feature_levels": 3}),
    "RTDetrForObjectDetection": ("RTDetrConfig", "RT-DETR ResNet", HYBRID),
    "RTDetrV2ForObjectDetection": ("RTDetrV2Config", "RT-DETR ResNet", HYBRID),
    "DFineForObjectDetection": ("DFineConfig", "HGNetV2", HYBRID),
    "UperNetForSemanticSegmentation": ("UperNetConfig", "Swin", {"hidden_size": 48, "auxiliary_in_channels": 128,
                                                                 "auxiliary_channels": 32}),
    "MaskFormerForInstanceSegmentation": ("MaskFormerConfig", "Swin", {"fpn_feature_size": 32,
                                                                       "mask_feature_size": 32}),
    "Mask2FormerForUniversalSegmentation": ("Mask2FormerConfig", "Swin", {
        "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 64,
        "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "dim_feedforward": 64, "num_queries": 8}),
    "DepthAnythingForDepthEstimation": ("DepthAnythingConfig", "DINOv2", {
        "depth_estimation_type": "metric", "initializer_range": 0.2,
        "reassemble_hidden_size": 96, "neck_hidden_sizes": [16, 24, 32, 48], "fusion_hidden_size": 24}),
    "VitPoseForPoseEstimation": ("VitPoseConfig", "ViTPose", {}),
    "VitMatteForImageMatting": ("VitMatteConfig", "ViTDet", {
        "hidden_size": 96, "fusion_hidden_sizes": [256, 128, 64, 32], "initializer_range": 0.2}),
}  # fmt: skip
"""{model: (its configuration, its backbone, options)}."""


def made(model: str, config: str, options: dict[str, Any], **inputs: torch.Tensor) -> Subject:
    settings = getattr(transformers, config)(**options)
    return Subject(getattr(transformers, model)(settings), inputs)


def plain(name: str) -> Subject:
    side = SIDES.get(name, 64)
    return made(name, *PLAIN[name], pixel_values=image(side, side))


def joined(name: str) -> Subject:
    config, backbone, options = JOINED[name]
    side = 56 if backbone == "DINOv2" else 64
    pixels = image(side, side, channels=4 if name.startswith("VitMatte") else 3)
    return made(name, config, options | {"backbone_config": BACKBONES[backbone]()}, pixel_values=pixels)


def towers(model: str, config: str, **more: Any) -> Subject:
    """Models of images and texts."""
    text = VIT | MLP | {"vocab_size": 64, "max_position_embeddings": 16}
    given = {"pixel_values": image(64, 64), "input_ids": torch.randint(2, 60, (1, 8))}
    options = {"vision_config": VIT | MLP | SEEN, "text_config": text, **more}
    return made(model, config, options, **given)


def others() -> dict[str, Callable[[], Subject]]:
    clip = {"pixel_values": image(64, 64)}
    sight = {"vision_config": VIT | MLP | SEEN}
    masked = VIT | MLP | SEEN | {"decoder_hidden_size": 48, "decoder_num_hidden_layers": 1,
                                 "decoder_num_attention_heads": 4, "decoder_intermediate_size": 96}  # fmt: skip
    sam = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "mlp_dim": 192,
           "window_size": 2, "global_attn_indexes": [1], "output_channels": 32, "initializer_range": 0.02}  # fmt: skip
    spoken = VIT | MLP | {"conv_dim": [48, 48], "conv_stride": [5, 2], "conv_kernel": [10, 3], "layerdrop": 0.0,
                          "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
                          "mask_time_prob": 0.0}  # fmt: skip
    heard = {"d_model": 48, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
             "num_mel_bins": 20, "max_source_positions": 20, "classifier_proj_size": 24}  # fmt: skip
    spectra = VIT | MLP | {"max_length": 64, "num_mel_bins": 32}
    return {
        "CLIPForImageClassification": lambda: made("CLIPForImageClassification", "CLIPConfig", sight, **clip),
        "SiglipForImageClassification": lambda: made("SiglipForImageClassification", "SiglipConfig", sight, **clip),
        "CLIPModel": lambda: towers("CLIPModel", "CLIPConfig", projection_dim=48),
        "SiglipModel": lambda: towers("SiglipModel", "SiglipConfig"),
        "OwlViTForObjectDetection": lambda: towers("OwlViTForObjectDetection", "OwlViTConfig", projection_dim=96),
        "CLIPSegForImageSegmentation": lambda: towers(
            "CLIPSegForImageSegmentation", "CLIPSegConfig", projection_dim=48, extract_layers=[0, 1, 2], reduce_dim=32,
            decoder_intermediate_size=64),
        "ViTMAEForPreTraining": lambda: made(
            "ViTMAEForPreTraining", "ViTMAEConfig", masked, pixel_values=image(64, 64), noise=torch.rand(1, 16)),
        "SamVisionModel": lambda: made("SamVisionModel", "SamVisionConfig", sam, pixel_values=image(64, 64)),
        "Wav2Vec2ForCTC": lambda: made("Wav2Vec2ForCTC", "Wav2Vec2Config", spoken, input_values=torch.randn(1, 1000)),
        "HubertForSequenceClassification": lambda: made(
            "HubertForSequenceClassification", "HubertConfig", spoken, input_values=torch.randn(1, 1000)),
        "ASTForAudioClassification": lambda: made(
            "ASTForAudioClassification", "ASTConfig", spectra, input_values=torch.randn(1, 64, 32)),
        "WhisperForAudioClassification": lambda: made(
            "WhisperForAudioClassification", "WhisperConfig", heard, input_features=torch.randn(1, 20, 40)),
    }  # fmt: skip


def _models() -> dict[str, Callable[[], Subject]]:
    for name in (*PLAIN, *VIDEOS, *JOINED, "CLIPModel", "SiglipModel", "OwlViTModel", "CLIPSegModel", "ViTMAEModel",
                 "SamVisionModel", "Wav2Vec2Model", "HubertModel", "ASTModel", "WhisperModel"):  # fmt: skip
        getattr(transformers, name)  # imports its module here, once for all processes
    known: dict[str, Callable[[], Subject]] = {name: lambda name=name: plain(name) for name in PLAIN}
    for name, (config, options) in VIDEOS.items():
        known[name] = lambda name=name, config=config, options=options: made(
            name, config, options, pixel_values=torch.randn(1, 4, 3, 32, 32)
        )
    return known | {name: lambda name=name: joined(name) for name in JOINED} | others()


MODELS = _models()
