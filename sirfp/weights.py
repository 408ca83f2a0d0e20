"""Weights of dense models from files of any usual format, read without running code from them."""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .branches import within
from .checkpoint import read_safetensors
from .errors import InputError

WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "state_dict_ema")
"""Keys under which training checkpoints keep a model's weights."""
OPTIONAL = ("num_batches_tracked", "pixel_mean", "pixel_std", "relative_position_index")
"""Last parts of names that one side may lack: counters, and buffers that some versions save and others do not."""
_BROKEN = (
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    TypeError,
    AttributeError,
    ValueError,
    pickle.UnpicklingError,
)


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
        content = read_arrays(path) if path.suffix == ".pkl" else _read_torch(path)
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
            state[name.removeprefix("module.")] = value
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


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"Unsupported (global|class)", str(error)):
            raise InputError(
                f"{path} holds Python objects beside tensors, which would run code; save the model's state_dict() alone"
            ) from None
        raise _broken(path, error) from None
    except _BROKEN as error:
        raise _broken(path, error) from None


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of NumPy arrays in plain containers; refuses every other object."""

    _NUMPY = {"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer"}

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self._NUMPY:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def read_arrays(path: Path) -> Any:
    """Reads a pickle of NumPy arrays in plain containers, as Detectron2's model zoo has them; runs nothing.

    Raises:
        InputError: it is broken or holds other objects.
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except (*_BROKEN, ImportError, IndexError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).partition("\n")[0].split())[:160]
    return InputError(f"{path} cannot be read as weights ({reason}); copy or make it again")
