"""spandrel: super-resolution, restoration and inpainting, with few blocks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from .subject import Subject, image

WINDOWS = {"embed_dim": 48, "depths": (2, 2), "num_heads": (4, 4), "window_size": 8, "img_size": 32}
SCALED = WINDOWS | {"upscale": 2, "upsampler": "pixelshuffle"}
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ATD": ("ATD.__arch.atd_arch", "ATD", SCALED | {"category_size": 16, "num_tokens": 16}),
    "Compact": ("Compact.__arch.SRVGG", "SRVGGNetCompact", {"num_conv": 4, "upscale": 2}),
    "DAT": ("DAT.__arch.DAT", "DAT", {"img_size": 32, "embed_dim": 48, "depth": [2], "num_heads": [4],
                               "split_size": [4, 8]}),
    "DCTLSA": ("DCTLSA.__arch.dctlsa", "DCTLSA", {"upscale": 2}),
    "DITN": ("DITN.__arch.DITN_Real", "DITN_Real", {"ITL_blocks": 1, "SAL_blocks": 1, "upscale": 2}),
    "DRCT": ("DRCT.__arch.drct_arch", "DRCT", SCALED | {"gc": 16}),
    "DRUNet": ("DRUNet.__arch.network_unet", "DRUNet", {"in_nc": 3, "out_nc": 3, "nc": [32, 48, 64, 96], "nb": 1}),
    "DnCNN": ("DnCNN.__arch.network_dncnn", "DnCNN", {"in_nc": 3, "out_nc": 3, "nb": 6}),
    "ESRGAN": ("ESRGAN.__arch.RRDB", "RRDBNet", {"num_filters": 32, "num_blocks": 2, "scale": 2}),
    "ESRGAN unshuffled": ("ESRGAN.__arch.RRDB", "RRDBNet", {"in_nc": 12, "num_blocks": 2, "scale": 4,
                                                            "shuffle_factor": 2}),
    "FBCNN": ("FBCNN.__arch.FBCNN", "FBCNN", {"nc": [32, 48, 64, 512], "nb": 1}),
    "FDAT": ("FDAT.__arch.fdat", "FDAT", {"scale": 2, "embed_dim": 48, "num_groups": 1, "depth_per_group": 2}),
    "FFTformer": ("FFTformer.__arch.fftformer_arch", "FFTformer", {"dim": 24, "num_blocks": [1, 1, 1],
                                                                  "num_refinement_blocks": 1}),
    "HAT": ("HAT.__arch.HAT", "HAT", SCALED | {"squeeze_factor": 12}),
    "LaMa": ("LaMa.__arch.LaMa", "LaMa", {"in_nc": 4}),
    "MixDehazeNet": ("MixDehazeNet.__arch.MixDehazeNet", "MixDehazeNet", {}),
    "MoSR": ("MoSR.__arch.mosr_arch", "MoSR", {"upscale": 2, "n_block": 3, "dim": 32}),
    "NAFNet": ("NAFNet.__arch.NAFNet_arch", "NAFNet", {"enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "OmniSR": ("OmniSR.__arch.OmniSR", "OmniSR", {"up_scale": 2, "num_feat": 48}),
    "PLKSR": ("PLKSR.__arch.PLKSR", "PLKSR", {"n_blocks": 3, "upscaling_factor": 2}),
    "RealPLKSR": ("PLKSR.__arch.RealPLKSR", "RealPLKSR", {"n_blocks": 3, "upscaling_factor": 2}),
    "RCAN": ("RCAN.__arch.rcan_arch", "RCAN", {"scale": 2, "n_resgroups": 2, "n_resblocks": 2}),
    "RGT": ("RGT.__arch.rgt", "RGT", {"img_size": 32, "embed_dim": 48, "depth": [2], "num_heads": [4]}),
    "RealCUGAN": ("RealCUGAN.__arch.upcunet_v3", "UpCunet2x", {}),
    "RetinexFormer": ("RetinexFormer.__arch.retinexformer_arch", "RetinexFormer", {"n_feat": 24, "stage": 1}),
    "SAFMN": ("SAFMN.__arch.safmn", "SAFMN", {"dim": 36, "n_blocks": 3, "upscaling_factor": 2}),
    "SCUNet": ("SCUNet.__arch.SCUNet", "SCUNet", {"config": [1] * 7}),
    "SPAN": ("SPAN.__arch.span", "SPAN", {"num_in_ch": 3, "num_out_ch": 3, "upscale": 2}),
    "SeemoRe": ("SeemoRe.__arch.seemore_arch", "SeemoRe", {"scale": 2, "num_layers": 2, "embedding_dim": 36,
                                                           "num_experts": 2}),
    "SwiftSRGAN": ("SwiftSRGAN.__arch.SwiftSRGAN", "Generator", {"num_blocks": 3, "upscale_factor": 2}),
    "Swin2SR": ("Swin2SR.__arch.Swin2SR", "Swin2SR", SCALED),
    "SwinIR": ("SwinIR.__arch.SwinIR", "SwinIR", SCALED),
    "Uformer": ("Uformer.__arch.Uformer", "Uformer", {"img_size": 128, "embed_dim": 16, "depths": [1] * 9}),
}  # fmt: skip
"""(module, class, options) of each network."""
SIDES = {"Uformer": 128, "SCUNet": 64, "RealCUGAN": 64, "MixDehazeNet": 64}
"""Sides of images in pixels; 32 for the others."""


def network(name: str) -> Subject:
    module, kind, options = NETWORKS[name]
    side = SIDES.get(name, 32)
    built = getattr(importlib.import_module(f"spandrel.architectures.{module}"), kind)(**options)
    if name == "LaMa":
        return Subject(built, (image(64, 64), (image(64, 64, channels=1) > 0).float()))
    return Subject(built, image(side, side))


MODELS: dict[str, Callable[[], Subject]] = {name: lambda name=name: network(name) for name in NETWORKS}
