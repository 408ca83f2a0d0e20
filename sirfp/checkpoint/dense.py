"""Weights of dense models from files of any usual format, read without running code from them."""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..files.pickles import BROKEN, broken, read_arrays
from ..network.branches import within
from .pruned import read_safetensors

WRAPPERS = ("state_dict_ema", "model_ema", "model", "state_dict", "model_state_dict", "model_state")
"""Keys under which training checkpoints keep a model's weights; averaged ones first, as timm takes them."""
PREFIXES = ("module.", "_orig_mod.")
"""What distributed and compiled models put before each name."""
OPTIONAL = ("num_batches_tracked", "pixel_mean", "pixel_std", "relative_position_index")
"""Last parts of names that one side may lack: counters, and buffers that some versions save and others do not."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Reads the weights of a dense model.

    Args:
        path: `.safetensors`; Detectron2's `.pkl` of arrays; or a file of `torch.save`, of weights alone or of a
            training checkpoint ({"model": ...}) that holds tensors and plain data only.

    Raises:
        InputError: it is missing, broken, holds other objects or no weights, or is of a pruned model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file of weights {path}")
    if path.suffix == ".safetensors":
        plan, content = read_safetensors(path)
    else:
        content = read_arrays(path) if path.suffix == ".pkl" else read_torch(path)
        plan = content.get("plan") if isinstance(content, Mapping) else None
    if plan:
        raise InputError(
            f"{path} is of a pruned model; the weights of the dense one are wanted here, pruned ones as FILE"
        )
    branches = content.get("training_only", ()) if isinstance(content, Mapping) else ()
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value))
        if isinstance(name, str) and isinstance(value, torch.Tensor) and not within(name, branches):
            while name.startswith(PREFIXES):
                name = name.partition(".")[2]
            state[name] = value
    if not state:
        raise InputError(f"{path} holds no weights by name; a state_dict or a checkpoint {{'model': ...}} is wanted")
    return state


def fill(model: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Fills a model with weights that must be all its own.

    Raises:
        InputError: a tensor is missing, too many, or of another shape; the model is left as it was.
    """
    own = model.state_dict()
    missing = [n for n in own if n not in state and not n.endswith(OPTIONAL)]
    extra = [n for n in state if n not in own and not n.endswith(OPTIONAL)]
    shapes = [n for n in own if n in state and own[n].shape != state[n].shape]
    if shapes and not missing and not extra:
        name = shapes[0]
        raise InputError(
            f"{source} does not fit the model: {name!r} is {tuple(state[name].shape)} there and "
            f"{tuple(own[name].shape)} here ({len(shapes)} such); is the number of classes the same?"
        )
    for problem, names in (("lacks", missing), ("has beside the model's", extra)):
        if names:
            raise InputError(f"{source} is for another model: it {problem} {names[0]!r} ({len(names)} such)")
    model.load_state_dict({n: t for n, t in state.items() if n in own}, strict=False)


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Reads a file of `torch.save` that holds tensors and plain data only; runs nothing.

    Raises:
        InputError: it is broken, holds other objects, or would take more memory than it has bytes.
    """
    try:
        _check_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options in timm's training checkpoints
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(content)
    except BROKEN as error:
        if re.search(r"Unsupported (global|class)", str(error)):
            raise InputError(
                f"{path} holds Python objects beside tensors, which would run code; save the model's state_dict() alone"
            ) from None
        raise broken(path, error) from None
    return content


def _check_archive(path: str | os.PathLike[str]) -> None:
    """PyTorch stores what it packs as it is; a packed part may be a thousand times as large as the file."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its part {part.filename!r} is compressed, which torch.save does not do")


def _check_sizes(content: Any) -> None:
    """Few stored numbers can pose as a tensor of any size, and would be as many once they are copied."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
                raise ValueError(f"it holds a tensor of layout {value.layout} on {value.device}")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"it holds a tensor of shape {tuple(value.shape)} with fewer numbers than that")
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
