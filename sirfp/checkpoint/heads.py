"""Pruned classifiers in networks with another head: other classes, no classifier, or feature maps only (timm).

The file's plan says which layers make its outputs. They are left out of the file, and the rest is loaded; the model's
own head, if it has one, is only cut to the features that are left.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..network.branches import within
from ..network.plain_tensors import plain_tensors
from ..network.response_norm import new_positions
from ..network.timm_attributes import FEATURE
from ..structure.groups import MODEL_OUTPUT
from ..structure.plan import Cut, PruningPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loadable:
    """What a file gives a model with another head.

    Attributes:
        plan: the plan, without tensors that the model does not have.
        state: {name: tensor}, likewise.
        own: the modules of the model whose tensors the file does not give.
    """

    plan: PruningPlan
    state: Mapping[str, torch.Tensor]
    own: tuple[str, ...] = ()


def check_head(head: int | None) -> None:
    """Raises InputError unless a number of classes, 0 for no head, or None is given."""
    if head is not None and (not isinstance(head, int) or isinstance(head, bool) or head < 0):
        raise InputError(f"head must be a number of classes, 0 to leave the head out, or None, got {head!r}")


def loadable(
    model: nn.Module, plan: PruningPlan, state: Mapping[str, torch.Tensor], head: int | None, source: str
) -> Loadable:
    """Returns what a file gives a model, where the head may be another one.

    Args:
        model: the dense model.
        plan: the file's plan.
        state: the file's tensors.
        head: the number of classes that is asked for, 0 for no head, or None: a network of timm then keeps the
            classifier that it was built with, if this is another one or none; other networks need the file's.
        source: name of the file, for messages.

    Raises:
        InputError: a head is asked for, and the plan does not say which layer of the file is the head.
    """
    if head is None and not _of_timm(model):
        return Loadable(plan, state)
    plan, state = _renamed(model, plan, state)
    own: dict[str, torch.Tensor] = {**dict(model.named_buffers()), **model.state_dict()}
    heads = tuple(name for name, why in plan.frozen.items() if why == MODEL_OUTPUT and f"{name}.weight" in state)
    if head is None:
        heads = tuple(name for name in heads if _differs(name, state, own))
        for name in heads:
            classes, kept = len(state[f"{name}.weight"]), own.get(f"{name}.weight")
            mine = "the model has none" if kept is None else f"the model's, of {len(kept)}, keeps its own weights"
            logger.warning("%s: its classifier %r, of %d classes, is not loaded: %s", source, name, classes, mine)
    elif not heads:
        raise InputError(f"{source} does not say which layer makes its outputs: replace the head after loading")
    gone = set() if head != 0 else {name for name in own if within(name, heads)}
    norms = set(new_positions(model))  # tensors that a cut makes
    kept_names = (set(own) | norms) - gone
    wrapper = isinstance(getattr(getattr(model, "feature_info", None), "info", None), list)
    state = {
        name: tensor
        for name, tensor in state.items()
        if not within(name, heads) and (not wrapper or name in own or _new_bias(name, plan, own))
    }
    return Loadable(_without(plan, kept_names, own, wrapper or bool(heads)), state, heads)


def replace_head(model: Any, heads: Iterable[str], classes: int) -> None:
    """Replaces the layers that make a cut model's outputs by a new layer, or leaves them out.

    Args:
        model: the model; changed in place.
        heads: the names of the layers.
        classes: the number of outputs of the new layer; 0 to leave the head out.

    Raises:
        InputError: there are several such layers, or the model has none.
    """
    if _of_timm(model) and hasattr(model, "reset_classifier"):
        model.reset_classifier(classes)
        return
    modules = dict(model.named_modules())
    present = [name for name in heads if not isinstance(modules.get(name), (type(None), nn.Identity))]
    if not classes:
        for name in present:
            _put(model, name, nn.Identity())
        return
    if len(present) != 1 or not isinstance(modules[present[0]], (nn.Linear, nn.Conv2d)):
        raise InputError(
            f"head={classes} needs a model with one linear or convolutional layer that makes its outputs, this one has "
            f"{' and '.join(present) or 'none'}: replace the head after loading"
        )
    old: Any = modules[present[0]]
    how: dict[str, Any] = {"bias": old.bias is not None, "device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, nn.Linear):
        _put(model, present[0], nn.Linear(old.in_features, classes, **how))
    else:
        how |= {"stride": old.stride, "padding": old.padding, "dilation": old.dilation}
        _put(model, present[0], nn.Conv2d(old.in_channels, classes, old.kernel_size, **how))


def announce_features(model: Any, plan: PruningPlan) -> None:
    """Sets the widths in `feature_info` of timm's network of feature maps, by a plan of the whole network."""
    info = getattr(getattr(model, "feature_info", None), "info", None)
    for key, width in plan.widths.get(_module_in(model, ""), {}).items():
        index = key.removeprefix(FEATURE)
        if isinstance(info, list) and key.startswith(FEATURE) and index.isdecimal() and int(index) < len(info):
            info[int(index)]["num_chs"] = width


def _of_timm(model: nn.Module) -> bool:
    return type(model).__module__.startswith("timm.")


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _differs(head: str, state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> bool:
    """True if the model's head has another number of outputs than the file's, or the model has none."""
    name = f"{head}.weight"
    return name not in own or len(own[name]) != len(state[name])


def _new_bias(name: str, plan: PruningPlan, own: Mapping[str, torch.Tensor]) -> bool:
    """True for a bias that the file's plan gives to a layer of the model."""
    layer, _, leaf = name.rpartition(".")
    return leaf == "bias" and layer in plan.new_biases and f"{layer}.weight" in own


def _renamed(
    model: nn.Module, plan: PruningPlan, state: Mapping[str, torch.Tensor]
) -> tuple[PruningPlan, Mapping[str, torch.Tensor]]:
    """Returns plan and tensors under the names that they have in timm's networks of feature maps.

    These flatten the first parts of names (`stages.0.conv` becomes `stages_0.conv`), or put `model.` before them.
    """
    own = {*dict(model.named_parameters()), *dict(model.named_buffers()), *plain_tensors(model), *new_positions(model)}
    places = {name for cut in plan.cuts for name, _ in cut.tensors}
    names = {name: _name_in(name, own) for name in {*state, *places}}
    if all(name == new for name, new in names.items()):
        return plan, state
    layers = {n.rpartition(".")[0]: new.rpartition(".")[0] for n, new in names.items()}
    cuts = tuple(replace(c, tensors=tuple((names[name], dim) for name, dim in c.tensors)) for c in plan.cuts)
    renamed = replace(
        plan,
        cuts=cuts,
        places={group: (names.get(name, name), dim) for group, (name, dim) in plan.places.items()},
        new_biases=tuple(layers.get(name, name) for name in plan.new_biases),
        widths={_module_in(model, name): widths for name, widths in plan.widths.items()},
        frozen={layers.get(name, name): why for name, why in plan.frozen.items()},
    )
    return renamed, {names[name]: tensor for name, tensor in state.items()}


def _name_in(name: str, own: set[str]) -> str:
    """Returns the name of a tensor of the whole network in a network of feature maps; the same name if it has none."""
    parts = name.split(".")
    flat = [f"{'_'.join(parts[:k])}.{'.'.join(parts[k:])}" for k in range(2, len(parts))]
    return next((new for new in (name, *flat, f"model.{name}") if new in own), name)


def _module_in(model: nn.Module, name: str) -> str:
    """Returns the name of a module of the whole network in a network of feature maps."""
    if not name:
        return "model" if isinstance(getattr(model, "model", None), nn.Module) else ""
    return _name_in(f"{name}.x", {f"{module}.x" for module, _ in model.named_modules()}).removesuffix(".x")


def _without(plan: PruningPlan, names: set[str], own: Mapping[str, torch.Tensor], change: bool) -> PruningPlan:
    """Returns a plan without tensors and groups that the model does not have; `change` False returns it as it is."""
    if not change:
        return plan
    known = names | {f"{layer}.bias" for layer in plan.new_biases if f"{layer}.weight" in names}

    def there(cut: Cut) -> Cut:
        return replace(cut, tensors=tuple(place for place in cut.tensors if place[0] in known))

    groups = [group for group in plan.kept if plan.places.get(group, ("", 0))[0] in known]
    return replace(
        plan,
        kept={group: plan.kept[group] for group in groups},
        channels={group: plan.channels[group] for group in groups},
        places={group: plan.places[group] for group in groups},
        cuts=tuple(cut for cut in map(there, plan.cuts) if cut.tensors),
        new_biases=tuple(layer for layer in plan.new_biases if f"{layer}.weight" in names),
    )
