"""Channel groups of any model: what must be cut together, found by one real forward pass.

The pass (`sirfp.tracing`) labels every channel and ties those that must stay or go together. Here the
tied labels become *atoms*, the slices of parameters and buffers that vanish together; atoms that touch
the same tensors form a *group* and compete with one another. What the outside sees, what meets an
operation without a rule, and what fails when a copy is cut and run, is frozen, with the reason.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..errors import InputError, near
from ..network.branches import training_only, within
from ..network.detectron import feature_widths, training_inputs
from ..network.forward import call, inference, is_detectron_input, tensors, training_branches
from ..network.proposals import fixed_proposals
from ..structure.atoms import build_groups, makes, sides, state_tensors
from ..structure.groups import ChannelGroups
from ..tracing import ChannelTrace
from ..tracing.outputs import Outputs

logger = logging.getLogger(__name__)


def find_groups(
    model: nn.Module, example_inputs: Any, ignore: Iterable[str] = (), *, trial: bool = True
) -> ChannelGroups:
    """Finds the channel groups of a model by following its channels through a forward pass.

    Args:
        model: any module; it is left as it was.
        example_inputs: what it is called with (a tensor, a tuple, a mapping, or Detectron2's list[dict]).
        ignore: names or patterns (`backbone.stem*`) of modules or tensors whose channels all stay.
        trial: whether to cut a copy and run it, and freeze the groups that the copy cannot run without.

    Returns:
        The groups, with what is frozen and why.

    Raises:
        InputError: if a name in `ignore` matches nothing in the model, or the model returns no tensor.
    """
    state = state_tensors(model)
    trace = ChannelTrace(state, [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.GroupNorm)])
    widths, outputs = feature_widths(model, trace), Outputs(model, trace)
    with inference(model), fixed_proposals(model), widths, outputs, trace:
        output = call(model, example_inputs)
    returned = [t for _, t in tensors(output)]
    if not returned:
        raise InputError(
            f"the model returns no tensor, but {type(output).__name__}, so the widths that must stay are not known; "
            "wrap it in a module that returns its tensors"
        )
    trace.freeze_tensors(returned, "it is the model's output")
    _follow_training(model, example_inputs, trace, state)
    branches = training_only(model)
    _keep(model, trace, state, branches, "it runs only in training")
    _ignore(model, trace, state, ignore)
    found = build_groups(model, trace, state, widths.found, outputs.dims)
    if trial and found.groups:
        from .trial import freeze_failing

        found = freeze_failing(model, example_inputs, output, found)
    return found


def find_again(model: nn.Module, example_inputs: Any, ignore: Iterable[str], found: ChannelGroups) -> ChannelGroups:
    """The same groups on the model as it is now: training has changed what channels emit, not their structure."""
    from .trial import freeze_groups

    now = find_groups(model, example_inputs, ignore, trial=False)
    known = {group.name for group in found}
    reasons = {f.name: f.reason for f in found.frozen}
    again = freeze_groups(now, {g.name: reasons.get(g.name, "") for g in now if g.name not in known})
    parts = [[(s.tensor, s.dim, s.index.tolist()) for g in groups for s in g.slices] for groups in (again, found)]
    return again if parts[0] == parts[1] else found  # where values decide, the model may take another way


def _follow_training(model: nn.Module, inputs: Any, trace: ChannelTrace, state: dict) -> None:
    """Follows branches that run only in training; where they cannot run, what could feed them stays."""
    if any(name not in trace.touched for name, _ in model.named_parameters()):
        trace.counting = False
        try:
            given = training_inputs(model, inputs) if is_detectron_input(inputs) else inputs
            with training_branches(model), trace:
                output = call(model, given)
            trace.freeze_tensors([t for _, t in tensors(output)], "it is the model's output in training")
        except Exception as error:  # any failure of the user's own code is a reason, not an end
            logger.info("the training branches of the model could not be followed: %s", error)
    reading: dict[int, str] = {}
    for name in (name for name in state if name not in trace.touched):
        for dim in trace.state_dims[name]:
            trace.labels.freeze(dim, "the forward pass does not reach it")
        if state[name].dim() >= 2 and isinstance(state[name], nn.Parameter):
            module = model.get_submodule(name.rpartition(".")[0])
            reading.setdefault(state[name].shape[1] * getattr(module, "groups", 1), name)
    if reading:
        known = {id(d): d for tap in trace.taps for d in [tap.labels]}
        for dim in known.values():
            if len(dim) in reading:
                reason = f"{reading[len(dim)]}, which the forward pass does not reach, may read it"
                trace.labels.freeze(dim, reason)


def _ignore(model: nn.Module, trace: ChannelTrace, state: dict, ignore: Iterable[str]) -> None:
    for pattern in (ignore,) if isinstance(ignore, str) else ignore:
        if not _keep(model, trace, state, [pattern], f"IGNORE names {pattern}"):
            every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
            modules = {name.rpartition(".")[0] for name in every}
            raise InputError(f"IGNORE names {pattern!r}, which no module of the model matches{near(pattern, modules)}")


def _keep(model: nn.Module, trace: ChannelTrace, state: dict, patterns: Iterable[str], reason: str) -> bool:
    """Freezes what the modules or tensors of some patterns make; says whether there are any."""
    first = {id(tensor): name for name, tensor in state.items()}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    matched = {
        first[id(tensor)]
        for name, tensor in every
        for pattern in patterns
        if id(tensor) in first and (name == pattern or within(name, [pattern]) or fnmatch.fnmatchcase(name, pattern))
    }
    for name in sorted(matched):
        layer = isinstance(state[name], nn.Parameter) and sides(state[name]) > 1
        for index, dim in enumerate(trace.state_dims[name]):
            if not layer or makes(model, name, index, state[name]):
                trace.labels.freeze(dim, reason)
    return bool(matched)
