"""Freezes channels in a trace: those of TorchScript modules, and those that the user or a caller wants to keep."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..errors import InputError, near
from ..network.branches import within
from ..network.patterns import matching, modules_with_tensors
from ..network.walk import walk
from ..structure.places import makes, sides
from ..tracing import ChannelTrace


def freeze_scripted(model: nn.Module, trace: ChannelTrace, state: dict) -> None:
    """Freezes the channels of TorchScript modules, whose tensors cannot be replaced."""
    scripted = [n for n, module in walk(model) if isinstance(module, torch.jit.ScriptModule)]
    for name in (name for name in state if within(name, scripted)):
        for dim in trace.state_dims[name]:
            trace.labels.freeze(dim, "a TorchScript module reads or makes it")


def reads_channels(model: nn.Module, name: str, tensor: torch.Tensor) -> bool:
    """True if a tensor may be the weight of a layer; False for buffers, tokens such as (1, C), and embeddings."""
    owner = model.get_submodule(name.rpartition(".")[0])
    layer = isinstance(tensor, nn.Parameter) and tensor.dim() >= 2 and tensor.shape[0] > 1 and sides(tensor) > 1
    return layer and not isinstance(owner, nn.Embedding)


def freeze_ignored(model: nn.Module, trace: ChannelTrace, state: dict, ignore: Iterable[str]) -> None:
    """Freezes the channels that modules or tensors make and read which the user names.

    Raises:
        InputError: a name matches nothing.
    """
    for pattern in (ignore,) if isinstance(ignore, str) else ignore:
        outputs, inputs = (f"IGNORE names {pattern}, whose {side} are kept" for side in ("outputs", "inputs"))
        if not freeze_made(model, trace, state, [pattern], outputs, inputs):
            known = modules_with_tensors(model)
            raise InputError(f"IGNORE names {pattern!r}, which no module of the model matches{near(pattern, known)}")


def freeze_made(
    model: nn.Module, trace: ChannelTrace, state: dict, patterns: Iterable[str], reason: str, inputs: str = ""
) -> bool:
    """Freezes the channels that matching modules or tensors make; returns True if any name matches.

    Args:
        patterns: as in `sirfp.network.patterns.matching`.
        reason: why the channels that they make are frozen.
        inputs: why the channels that they read are frozen; "" to leave these alone.
        model: the model.
        trace: its trace.
        state: its tensors by name.
    """
    matched = matching(model, state, patterns)
    for name in matched:
        layer = isinstance(state[name], nn.Parameter) and sides(state[name]) > 1
        for index, dim in enumerate(trace.state_dims[name]):
            if not layer or makes(model, name, index, state[name]):
                trace.labels.freeze(dim, reason)
            elif inputs:
                trace.labels.freeze(dim, inputs)
    return bool(matched)
