"""Inputs for tests of the command line: a small network of each family, and valid and invalid files."""

from __future__ import annotations

import pickle
import struct
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from safetensors.torch import save_file

import sirfp
from sirfp.checkpoint import read
from sirfp.checkpoint.pruned import PLAN_KEY

NETWORK = ["--timm", "test_resnet", "--num-classes", "7", "--size", "64", "64"]
CONFIGS = Path(__file__).parents[1] / "projects/segmentation/configs"
SEGMENTOR = ["--config-file", str(CONFIGS / "scenes/deeplab_v3_plus_r18.yaml"), "--size", "64", "64"]
SMALL = "MODEL.TIMM.NAME test_resnet MODEL.SEM_SEG_HEAD.ASPP_CHANNELS 16 MODEL.SEM_SEG_HEAD.CONVS_DIM 16".split()


def make_files(root: Path) -> Path:
    """Fills a folder with valid and invalid files of every kind."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # timm begins with zeros in the last norm of a block
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    torch.save(model.state_dict(), root / "dense.pth")
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, root / "training.pth")
    arrays = {k: v.numpy() for k, v in model.state_dict().items()}
    (root / "dense.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "test"}))
    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), root / "other.pth")
    torch.save(timm.create_model("test_resnet", num_classes=9).state_dict(), root / "classes.pth")
    torch.save({"model": model}, root / "objects.pth")
    (root / "calls.pkl").write_bytes(pickle.dumps({"model": subprocess.run}))
    (root / "text.pth").write_text("not weights")
    (root / "graph.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch" * 20)
    (root / "nothing.pth").touch()
    (root / "raises.py").write_text("import math\n\nmath.sqrt(-1)\n")
    (root / "syntax.py").write_text("def model(:\n")
    (root / "needs.py").write_text("import a_package_of_nobody\n")
    torch.save({"model": {"a": 3}}, root / "numbers.pth")
    torch.save({n: t * float("nan") if t.dim() == 4 else t for n, t in model.state_dict().items()}, root / "nan.pth")

    plan = sirfp.prune(model, torch.zeros(1, 3, 64, 64), "magnitude", 0.5)
    sirfp.save(root / "small.safetensors", model, plan)
    _, state = read(root / "small.safetensors")
    save_file(
        state, str(root / "small.safetensors"), metadata={PLAN_KEY: plan.to_json()}
    )
    whole = (root / "small.safetensors").read_bytes()
    (root / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file(state, str(root / "planless.safetensors"))
    cut = plan.cuts[0]
    altered = replace(plan, cuts=(replace(cut, keep=(*cut.keep[:-1], cut.size)), *plan.cuts[1:]))
    save_file(state, str(root / "altered.safetensors"), metadata={PLAN_KEY: altered.to_json()})
    first = next(name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dim() == 4)
    lacking = {name: tensor for name, tensor in state.items() if name != first}
    save_file(lacking, str(root / "lacking.safetensors"), metadata={PLAN_KEY: plan.to_json()})

    for folder in ("images/a", "empty", "broken", "labels", "bomb", "folder.onnx"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(5):
        cv2.imwrite(str(root / f"images/a/{i}.png"), random.integers(0, 256, (70, 90, 3), dtype=np.uint8))
        cv2.imwrite(str(root / f"labels/{i}.png"), random.integers(0, 3, (70, 90), dtype=np.uint8))
    (root / "broken/0.png").write_bytes((root / "images/a/0.png").read_bytes()[:4000])
    (root / "bomb/0.png").write_bytes(_png_header(30_000, 30_000))
    (root / "no.yaml").write_text("MODEL: [")
    return root


def _png_header(width: int, height: int) -> bytes:
    """The beginning of an image file whose header declares this many pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
