"""Reads weights of dense models from files of the usual formats, without running code from them."""

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
from ..files.nearby import nearby
from ..files.pickles import BROKEN, broken, read_arrays
from ..network.branches import within
from ..network.wrappers import COMPILED
from .pruned import read_safetensors

WRAPPERS = ("state_dict_ema", "model_ema", "model", "state_dict", "model_state_dict", "model_state")
"""Keys under which training checkpoints store a model's weights; averaged weights first, which timm prefers too."""
PREFIXES = ("module.", COMPILED)
"""Prefixes of names in distributed and compiled models."""
OPTIONAL = ("num_batches_tracked", "pixel_mean", "pixel_std", "relative_position_index", "n_averaged")
"""Last parts of the names of tensors that may be missing in the file or in the model: counters, and buffers that only
some versions save."""


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Reads the weights of a dense model.

    Args:
        path: a `.safetensors` file; Detectron2's `.pkl` of arrays; or a file of `torch.save` with a state_dict or a
            training checkpoint ({"model": ...}), which may hold tensors and plain data only.

    Returns:
        {name: tensor}, without prefixes of wrappers and without branches that run only in training.

    Raises:
        InputError: the file is missing or damaged, holds other objects or no weights, or holds a pruned model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file of weights {path}{nearby(path)}")
    content, pruned = _read_content(path)
    if pruned:
        raise InputError(
            f"{path} holds a pruned model, and weights of a dense one are needed here: give a pruned file as FILE "
            "without --weights to a command, as MODEL.WEIGHTS to a training run"
        )
    branches = content.get("training_only")
    branches = branches if isinstance(branches, (list, tuple)) else ()
    wrapped = (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping))
    state = {}
    for name, value in next(wrapped, content).items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value))
        if isinstance(name, str) and isinstance(value, torch.Tensor) and not within(name, branches):
            state[_without_prefixes(name)] = value
    if not state:
        raise InputError(f"{path} holds no weights by name; give a state_dict or a checkpoint {{'model': ...}}")
    return state


def _read_content(path: Path) -> tuple[Mapping[Any, Any], bool]:
    """Reads a file of any supported format.

    Returns:
        The mapping in the file, empty if the file holds another object; and True if the file holds a pruned model.

    Raises:
        InputError: the file is damaged or holds other objects.
    """
    if path.suffix == ".safetensors":
        plan, tensors = read_safetensors(path)
        return tensors, plan is not None
    content = read_arrays(path) if path.suffix == ".pkl" else read_torch(path)
    if not isinstance(content, Mapping):
        return {}, False
    text = content.get("plan")  # sirfp's training checkpoints store the plan as JSON, "" before the first cut
    return content, isinstance(text, str) and text != ""


def _without_prefixes(name: str) -> str:
    """Returns a tensor's name without the prefixes of distributed and compiled models."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def without_owner(state: Mapping[str, torch.Tensor], own: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """Takes a network's weights out of those of the module that owns it, e.g. "model." of a `LightningModule`.

    Args:
        state: {name: tensor} of a file.
        own: {name: tensor} of the network.

    Returns:
        The weights with a prefix under which the file has all tensors of the network, without this prefix; `state` if
        there is no or more than one such prefix.
    """
    needed = [name for name in own if not name.endswith(OPTIONAL)]
    if not needed or all(name in state for name in needed):
        return state
    ends = [name.removesuffix(needed[0]) for name in state if name.endswith(f".{needed[0]}")]
    owners = [prefix for prefix in ends if all(prefix + name in state for name in needed)]
    if len(owners) != 1:
        return state
    return {name.removeprefix(owners[0]): tensor for name, tensor in state.items() if name.startswith(owners[0])}


BUILD = "name the network that the weights were saved from"
"""What to do about weights of another network, for messages."""


def fill(model: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Loads weights into a model; their names and shapes must be exactly those of the model.

    `OPTIONAL` tensors may be missing in the weights or in the model.

    Args:
        model: changed in place.
        state: {name: tensor}.
        source: name of the file, for messages.

    Raises:
        InputError: a tensor is missing, unknown or of another shape; the model is then unchanged.
    """
    own = model.state_dict()
    state = without_owner(state, own)
    missing = [n for n in own if n not in state and not n.endswith(OPTIONAL)]
    unknown = [n for n in state if n not in own and not n.endswith(OPTIONAL)]
    if missing:
        raise InputError(
            f"{source} is for another model: {missing[0]!r} is missing ({len(missing)} missing in all); its first "
            f"tensor is {next(iter(state), None)!r}: {BUILD}"
        )
    if unknown:
        raise InputError(
            f"{source} is for another model: this model has no {unknown[0]!r} ({len(unknown)} unknown in all): {BUILD}"
        )
    reshaped = [n for n in own if n in state and own[n].shape != state[n].shape]
    if reshaped:
        name, count = reshaped[0], len(reshaped)
        theirs, ours = state[name].shape, own[name].shape
        wanted = f"{theirs[0]}, not {ours[0]}" if count <= 2 and theirs[1:] == ours[1:] else "not the model's"
        raise InputError(
            f"{source} does not fit the model: {name!r} is {tuple(theirs)} in the file and {tuple(ours)} in the model "
            f"({count} differ in all); build the model with the file's number of classes, {wanted} (--num-classes with "
            "--timm, NUM_CLASSES in a config), if this is the difference"
        )
    model.load_state_dict({n: tensor for n, tensor in state.items() if n in own}, strict=False)


def read_torch(path: str | os.PathLike[str]) -> Any:
    """Reads a file of `torch.save` that holds tensors and plain data only; runs no code from it.

    Raises:
        InputError: the file is damaged, holds other objects, or holds a tensor that is larger than its stored data.
    """
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # timm's training checkpoints hold their options as a Namespace
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(content)
    except BROKEN as error:
        if re.search(r"Unsupported (global|class)", str(error)):
            raise InputError(
                f"{path} holds Python objects, which could run code; save only the model's state_dict()"
            ) from None
        raise broken(path, error) from None
    return content


def _check_archive(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a zip archive with compressed parts.

    `torch.save` does not compress; a compressed part may expand to a thousand times the size of the file.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"part {part.filename!r} of the file is compressed; torch.save does not compress")


def _check_sizes(content: Any) -> None:
    """Raises ValueError for a tensor with more elements than stored numbers.

    With strides of 0, a few stored numbers form a tensor of any size, and a copy of it could fill the memory.
    """
    queue: list[Any] = [content]
    seen: set[int] = set()
    while queue:
        value = queue.pop()
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
                raise ValueError(f"the file holds a tensor of layout {value.layout} on {value.device}")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor has shape {tuple(value.shape)}, but the file stores fewer numbers")
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            queue.extend(value.values() if isinstance(value, dict) else value)
