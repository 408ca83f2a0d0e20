"""Calls any model with its kind of inputs, in evaluation or training mode, and finds the tensors in its output."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from .steady import is_held, is_steady
from .uncompiled import uncompiled
from .untouched import copied_inputs, outside_inference_mode, seed_pytorch
from .walk import walk, walk_modules


def call(model: nn.Module, inputs: Any, *, copied: bool = False) -> Any:
    """Calls a model: with a tensor as `model(x)`, a tuple as `model(*xs)`, a mapping as `model(**xs)`.

    A list of dictionaries (Detectron2's `list[dict]`) and any other object is passed as one argument. The model gets
    copies of the tensors, because some models write into their inputs; `copied` if the inputs are copies already.
    """
    inputs = inputs if copied else copied_inputs(inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(inputs)


def is_detectron_input(inputs: Any) -> bool:
    """Returns True if the inputs are Detectron2's `list[dict]`."""
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], Mapping)


def tensors(output: Any, path: str = "output", _seen: set[int] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (path, tensor) for every tensor in nested containers and objects, such as Detectron2's `Instances`."""
    seen = set() if _seen is None else _seen
    if isinstance(output, torch.Tensor):
        yield path, output
        return
    if output is None or isinstance(output, (str, bytes, int, float, bool, nn.Module)) or id(output) in seen:
        return
    seen.add(id(output))
    if isinstance(output, Mapping):
        items = [(str(k), v) for k, v in output.items()]
    elif isinstance(output, (list, tuple, set)):
        items = [(str(i), v) for i, v in enumerate(output)]
    else:
        slots = [name for kind in type(output).__mro__ for name in _names(kind.__dict__.get("__slots__", ()))]
        items = [(name, getattr(output, name)) for name in slots if hasattr(output, name) and name != "__dict__"]
        items += list(getattr(output, "__dict__", {}).items())
    for key, value in items:
        yield from tensors(value, f"{path}.{key}", seen)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def first_tensor(args: tuple, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Returns the first tensor that a module is called with, by position or by keyword; None if there is none."""
    return next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)), None)


def random_images(
    size: tuple[int, int], count: int, generator: torch.Generator, channels: int = 3
) -> list[dict[str, Any]]:
    """Returns inputs for Detectron2's models: `count` images of random noise, all of the same size (height, width).

    `channels` is the number of channels that the model reads: `len(cfg.MODEL.PIXEL_MEAN)`, or `image_channels`.
    """
    height, width = size
    images = [torch.randint(0, 256, (channels, height, width), generator=generator).float() for _ in range(count)]
    return [{"image": image, "height": height, "width": width} for image in images]


def image_channels(model: nn.Module, default: int = 3) -> int:
    """Returns the number of channels of a network's images.

    This is the length of the buffer `pixel_mean` of Detectron2's models. For others it is the number of input channels
    of the first convolution that images can reach: timm names it (`pretrained_cfg["first_conv"]`), else the first
    module with `in_channels`. Without any, `default`.
    """
    mean = getattr(model, "pixel_mean", None)
    if isinstance(mean, torch.Tensor):
        return mean.numel()
    modules = dict(walk(model))
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    named = [modules[name] for name in ([first] if isinstance(first, str) else first or ()) if name in modules]
    counts = (getattr(module, "in_channels", None) for module in (*named, *modules.values()))
    return next((count for count in counts if isinstance(count, int)), default)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode; afterwards restores every module's mode."""
    with _modes(model) as modules:
        if not all(map(_evaluates, modules)) or not all(map(_sets_mode_only, {type(module) for module in modules})):
            model.eval()
        yield


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode and disables gradients; afterwards restores every module's mode."""
    with evaluation(model), outside_inference_mode(), torch.no_grad(), uncompiled():
        yield


@contextmanager
def training_branches(model: nn.Module, *, whole: bool = False) -> Iterator[None]:
    """Sets training mode and disables gradients; afterwards restores every module's mode.

    Norms and dropout stay in evaluation mode, so that running statistics do not change.

    Args:
        model: the model.
        whole: True to leave only norms and dropouts of known code in evaluation mode (`is_steady`), so that all other
            code for training runs; for copies of a model.
    """
    with _modes(model), outside_inference_mode(), torch.no_grad(), uncompiled(), _event_storage():
        _train_steadily(model)
        for module in walk_modules(model) if whole else ():
            module.training = not is_steady(module)
        yield


@contextmanager
def gradients(model: nn.Module, losses_in_training: bool, seed: int = 0) -> Iterator[None]:
    """Prepares a model for losses and their gradients, and restores it afterwards.

    While active, norms use their running statistics without updating them, dropout is off, and all parameters get
    gradients, including those of frozen layers. Afterwards gradients are deleted, and these are restored: the modes,
    float attributes of modules (such as the averaged loss normaliser of Detectron2's dense detectors), `requires_grad`
    of each parameter, and the state of the random number generators.

    Args:
        model: the model.
        losses_in_training: True if the model returns losses only in training mode, like Detectron2's models. False to
            run the model in evaluation mode.
        seed: the seed of random choices inside the model, e.g. the sampling of a detector's proposals.
    """
    required = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    devices = {p.device for p, _ in required if p.is_cuda}
    numbers = [(vars(module), _floats(module)) for module in walk_modules(model)]
    with _modes(model), outside_inference_mode(), torch.enable_grad(), _event_storage(), torch.random.fork_rng(devices):
        seed_pytorch(seed)
        _train_steadily(model) if losses_in_training else model.eval()
        for parameter, _ in required:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            for parameter, needed in required:
                parameter.requires_grad_(needed)
            for attributes, before in numbers:
                for name in [n for n, value in attributes.items() if type(value) is float and n not in before]:
                    del attributes[name]
                attributes.update(before)


def backward_seed(loss: torch.Tensor) -> torch.Tensor:
    """Returns the seed of the backward pass: 1.0, or NaN if the loss is not finite, so that all gradients become NaN.

    Args:
        loss: a tensor with one value.

    Returns:
        A tensor with one value and the loss's dtype, for `loss.backward`.
    """
    return torch.where(loss.detach().isfinite(), 1.0, torch.nan).to(loss.dtype)


def _floats(module: nn.Module) -> dict[str, float]:
    return {name: value for name, value in vars(module).items() if type(value) is float}


def _train_steadily(model: nn.Module) -> None:
    """Sets training mode, but evaluation mode for norms, dropout, and modules with a float attribute `dropout`."""
    model.train()
    for module in walk_modules(model):
        if is_held(module):
            module.training = False


def _evaluates(module: nn.Module) -> bool:
    """True for a module in evaluation mode, unless it has a method of its own that sets it."""
    own = vars(module)
    return own.get("training") is False and "train" not in own and "eval" not in own


def _sets_mode_only(kind: type[nn.Module]) -> bool:
    """True for a class whose modules do nothing else when their mode is set."""
    usual = kind.train is nn.Module.train and kind.eval is nn.Module.eval
    return usual and kind.__setattr__ is nn.Module.__setattr__ and not hasattr(kind, "training")


@contextmanager
def _modes(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Gives the list of all modules, and restores the mode of each afterwards."""
    modules = walk_modules(model)
    modes = [(m, m.training) for m in modules if hasattr(m, "training")]  # a frozen ScriptModule has no mode
    try:
        yield modules
    finally:
        for module, mode in modes:
            if vars(module).get("training") is not mode:
                module.training = mode


def _event_storage():
    """Returns a context with an event storage; Detectron2's heads write to it in training mode."""
    if "detectron2" not in sys.modules:
        return nullcontext()
    from detectron2.utils.events import EventStorage

    return EventStorage(0)
