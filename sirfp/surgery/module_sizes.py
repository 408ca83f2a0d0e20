"""The sizes that a module's attributes hold, such as `in_channels`, set from its tensors after a cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def sizes_of(module: nn.Module) -> dict[str, int]:
    """Returns the sizes in a module's attributes, {attribute: size}."""
    names = ("in_channels", "out_channels", "groups", "num_channels", "num_groups")
    found = {name: getattr(module, name, None) for name in names}
    return {name: size for name, size in found.items() if isinstance(size, int)}


def refresh(module: Any, old: Mapping[str, int], cuts: Mapping[str, list]) -> None:
    """Updates the attributes of a module that hold a size, from its tensors after the cut.

    Args:
        module: the module whose tensors were cut.
        old: its sizes before the cut, as `sizes_of` returns them.
        cuts: {tensor's name: [(dimension, kept indices)]}.
    """
    direction = getattr(
        module, "weight_v", None
    )  # with weight norm, `weight` is of the dense layer until the next call
    weight: Any = getattr(module, "weight", None) if direction is None else direction
    if isinstance(weight, torch.Tensor) and weight.dim() >= 3 and "in_channels" in old and "out_channels" in old:
        transposed = bool(getattr(module, "transposed", False))
        groups = old.get("groups", 1)
        if groups > 1 and groups == old["in_channels"]:
            groups = weight.shape[0] if transposed else _inputs_left(old, cuts, weight.shape[0])
        if "groups" in old:
            module.groups = groups
        a, b = weight.shape[0], weight.shape[1] * groups
        module.in_channels, module.out_channels = (a, b) if transposed else (b, a)
    elif isinstance(weight, torch.Tensor) and weight.dim() == 2 and isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        _refresh_recurrent(module)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif "num_groups" in old and "num_channels" in old:  # a group norm
        width = old["num_channels"] // old["num_groups"]
        for _, keep in cuts.get("weight", []):
            module.num_groups = len({index // width for index in keep})
        module.num_channels = weight.shape[0]
    if isinstance(getattr(module, "normalized_shape", None), tuple) and isinstance(weight, torch.Tensor):
        module.normalized_shape = tuple(weight.shape)
    if isinstance(getattr(module, "num_features", None), int):
        vector = getattr(module, "running_mean", None)
        vector = weight if vector is None else vector
        if isinstance(vector, torch.Tensor) and vector.dim() == 1:
            module.num_features = len(vector)


def _inputs_left(old: Mapping[str, int], cuts: Mapping[str, list], outputs: int) -> int:
    """Returns how many inputs of a depthwise convolution still have outputs.

    Args:
        old: its sizes before the cut.
        cuts: as `refresh` takes them; those of its weight may be missing.
        outputs: its number of outputs after the cut.
    """
    of_weight = [pieces for leaf, pieces in cuts.items() if leaf.startswith(("weight", "original"))]
    rows = next((keep for pieces in (*of_weight, cuts.get("bias", [])) for dim, keep in pieces if dim == 0), None)
    if rows is None:
        return outputs * old["groups"] // old["out_channels"]
    return len({index * old["groups"] // old["out_channels"] for index in rows})


def _refresh_recurrent(module: Any) -> None:
    """Sets the sizes of a recurrent layer or cell from its weights, and lists its weights anew."""
    layers = isinstance(module, nn.RNNBase)
    inputs, hidden = (module.weight_ih_l0, module.weight_hh_l0) if layers else (module.weight_ih, module.weight_hh)
    name = getattr(module, "mode", type(module).__name__).upper()
    gates = 4 if name.startswith("LSTM") else 3 if name.startswith("GRU") else 1
    module.input_size, module.hidden_size = inputs.shape[1], inputs.shape[0] // gates
    if layers:
        if module.proj_size:
            module.proj_size = hidden.shape[1]
        module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
