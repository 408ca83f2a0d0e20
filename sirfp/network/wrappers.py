"""Takes a network out of its wrappers: distributed training, compilation, moving averages, Lightning.

A wrapper changes the names of the network's parameters or adds operations to its calls. Every function that finds
groups, cuts, writes or reads works on the plain network. Therefore files and plans hold its plain names, and load into
the plain network and into any wrapper.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import InputError
from .walk import walk_modules, walk_parameters, walk_tensors

P = ParamSpec("P")
R = TypeVar("R")

WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "AveragedModel": "module",
    "_FabricModule": "_forward_module",
    "DeepSpeedEngine": "module",
}
"""{class, by its name so that no library has to be there: attribute of the network inside}."""
COMPILED = f"{WRAPPERS['OptimizedModule']}."
"""What a compiled module puts before the names of the module inside."""
AVERAGES = ("module", "ema", "ema_model", "averaged_model", "model")
"""Attributes of the network inside a moving average, which is a class with "EMA" or "Ema" in its name."""


def unwrapped(model: Any) -> Any:
    """Returns the network inside all of a model's wrappers; the model itself if it has none."""
    inner = _inside(model) or _averaged(model) or _of_lightning(model)
    return model if inner is None or inner is model else unwrapped(inner)


def as_models(models: Any) -> list[Any]:
    """Returns further models as a list; a single one may be given alone.

    Raises:
        InputError: they are no models.
    """
    if isinstance(models, nn.Module):
        return [models]
    if not isinstance(models, Iterable):
        raise InputError(f"also must be a list of models, got {type(models).__name__}")
    return list(models)


def compiled_code_as_python() -> AbstractContextManager[Any]:
    """While active, compiled models run as plain Python, which calls their hooks."""
    # without this module nothing is compiled, and to import it takes seconds
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def plain(model: Any) -> Iterator[nn.Module]:
    """Gives the plain network inside a model, and restores the wrappers afterwards.

    While active, the modules inside the network are out of their wrappers too, and compiled code runs as plain Python.
    If the network's parameters were replaced meanwhile, `DistributedDataParallel` starts anew with the new ones: every
    process has to come here.

    Args:
        model: the model, wrapped or not.

    Raises:
        InputError: the model is not a `torch.nn.Module`, or its parameters are sharded.
    """
    network = unwrapped(model)
    _check_module(network)
    replaced = []
    for parent in walk_modules(network):
        for name, child in parent._modules.items():
            inner = child
            while (next_inner := _inside(inner)) is not None:
                inner = next_inner
            if inner is not child:
                replaced.append((parent, name, child))
                parent._modules[name] = inner
    before = {id(p) for _, p in walk_parameters(network)}
    try:
        with compiled_code_as_python():
            yield network
    finally:
        for parent, name, child in replaced:
            parent._modules[name] = child
        if {id(p) for _, p in walk_parameters(network)} != before:
            for wrapper in [model, *(child for _, _, child in replaced)]:
                _start_anew(wrapper)


def on_plain_model(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function with an argument `model` work on the plain network inside it; see `plain`."""
    place = list(inspect.signature(function).parameters).index("model")

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        given: dict[str, Any] = dict(kwargs)
        words: list[Any] = list(args)
        if "model" not in given and len(words) <= place:
            return function(*args, **kwargs)  # Python says which argument is missing
        with plain(given["model"] if "model" in given else words[place]) as network:
            if "model" in given:
                given["model"] = network
            else:
                words[place] = network
            call: Any = function
            return call(*words, **given)

    return inside


def check_prunable(model: nn.Module, values: bool = True) -> None:
    """Raises InputError for a network whose channels cannot be followed, or that has no values yet.

    Args:
        model: the network.
        values: False if shapes are enough, so that tensors may be on the device 'meta'.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "the model is TorchScript, whose code cannot be followed; give the module that it was made from"
        )
    tensors = walk_tensors(model)
    lazy = next((name for name, t in tensors.items() if nn.parameter.is_lazy(t)), None)
    if lazy is not None:
        raise InputError(f"{lazy!r} has no shape yet, as its layer is lazy; call the model once before")
    meta = next((name for name, t in tensors.items() if t.is_meta), None)
    if meta is not None and values:
        raise InputError(f"{meta!r} is on the device 'meta' and has no values; build the model on a real device")
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):  # set by torch.export, to raise an error
        raise InputError(
            "the model is an exported program, which fixes all sizes; give the module that it was made from"
        )


def check_same_structure(model: nn.Module, other: nn.Module, called: str) -> None:
    """Checks that another model can lose the same channels as a model that is to be pruned.

    Args:
        model: the plain model to prune.
        other: the other model, wrapped or not.
        called: what messages call the other model.

    Raises:
        InputError: the other model has other tensors, or one of them cannot be pruned.
    """
    check_prunable(model)
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with plain(other) as network:
        check_prunable(network)
        its = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    differs = next((name for name in {**own, **its} if own.get(name) != its.get(name)), None)
    if differs is not None:
        raise InputError(
            f"{called} is not of the structure of the model to prune: {differs!r} is "
            f"{its.get(differs, 'missing')}, expected {own.get(differs, 'no such tensor')}"
        )


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        kind, hint = type(model).__name__, "give a torch.nn.Module"
        if isinstance(model, Mapping):
            hint = "build the network and load these weights into it: model.load_state_dict(...)"
        elif isinstance(model, os.PathLike) or (isinstance(model, str) and os.path.splitext(model)[1]):
            hint = "a file comes before the model: sirfp.save(file, model), sirfp.load(file, model)"
        elif isinstance(model, str):
            hint = f"build the network first, e.g. timm.create_model({model!r})"
        elif callable(model):
            hint = "give the torch.nn.Module that it calls"
        raise InputError(f"the model is no torch.nn.Module, but {kind}; {hint}")
    kinds = {kind.__name__ for kind in type(model).__mro__}
    sharded = any(hasattr(p, "device_mesh") and hasattr(p, "placements") for _, p in walk_parameters(model))
    if "FullyShardedDataParallel" in kinds or "FSDPModule" in kinds or sharded:
        raise InputError("the model's parameters are sharded over processes; prune the model before it is sharded")


def _inside(model: Any) -> nn.Module | None:
    """Returns the network in one of `WRAPPERS`."""
    kind: Any = type(model)
    inner = [getattr(model, name, None) for name in _attributes_of_wrappers(kind)]
    return next((one for one in inner if isinstance(one, nn.Module)), None)


@lru_cache(maxsize=4096)
def _attributes_of_wrappers(kind: type) -> tuple[str, ...]:
    """Returns the attributes in which objects of a class hold the network inside, if it is one of `WRAPPERS`."""
    return tuple(WRAPPERS[base.__name__] for base in kind.__mro__ if base.__name__ in WRAPPERS)


def _averaged(model: Any) -> nn.Module | None:
    """Returns the network in a moving average, e.g. timm's `ModelEmaV3`, which need not be a module itself."""
    if not re.search("EMA|Ema|ExponentialMovingAverage", type(model).__name__):
        return None
    inner = [getattr(model, name, None) for name in AVERAGES]
    return next((one for one in inner if isinstance(one, nn.Module)), None)


def _of_lightning(model: Any) -> nn.Module | None:
    """Returns the network of a `LightningModule`, if only one of its modules has parameters."""
    if "LightningModule" not in {kind.__name__ for kind in type(model).__mro__}:
        return None
    networks = [child for child in model.children() if next(child.parameters(), None) is not None]
    own = next(model.parameters(recurse=False), None)
    return networks[0] if own is None and len(networks) == 1 else None


def _start_anew(wrapper: Any) -> None:
    """Lets a `DistributedDataParallel`, in one of the wrappers, average the gradients of the present parameters."""
    while not isinstance(wrapper, DistributedDataParallel):
        wrapper = _inside(wrapper)
        if wrapper is None:
            return
    training, network = wrapper.training, wrapper.module
    same = ("device_ids", "output_device", "dim", "broadcast_buffers", "process_group", "find_unused_parameters",
            "gradient_as_bucket_view", "static_graph", "mixed_precision")  # fmt: skip
    options: dict[str, Any] = {name: getattr(wrapper, name) for name in same}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `broadcast_buffers` has a new name in newer versions
        DistributedDataParallel.__init__(wrapper, network, **options)
    wrapper.training = training
