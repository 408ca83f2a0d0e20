"""Finds the channel groups of any model by one forward pass.

The trace (`sirfp.tracing`) labels every channel and ties those that must be kept or removed together. Tied labels form
*atoms*, slices of parameters and buffers that are cut together. Atoms in the same tensors form a *group* and compete
with each other (`sirfp.structure.atoms`).

Channels are frozen, with the reason, in three cases:

- they are part of the model's output;
- an operation without a rule reads them;
- a copy of the model with these channels cut fails, or computes something else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..errors import InputError, first_line
from ..network.attention import followed_heads
from ..network.batches import attempted
from ..network.branches import training_only
from ..network.detectron import feature_widths, training_inputs
from ..network.forward import call, inference, is_detectron_input, tensors, training_branches
from ..network.outputs import Outputs as ModelOutputs
from ..network.outputs import only
from ..network.plain_tensors import register_plain
from ..network.proposals import box_heads, fixed_proposals
from ..network.response_norm import followed_response_norms
from ..network.size_watch import SizeWatch
from ..network.steady import is_held
from ..network.training_reads import TrainingReads
from ..network.untouched import SharedMemory, copied_model, outside_inference_mode, random_states, untouched
from ..network.walk import walk, walk_parameters
from ..network.wrappers import check_prunable, on_plain_model, unwrapped
from ..structure.atoms import build_groups, state_tensors, traced_tensors
from ..structure.groups import MODEL_OUTPUT, ChannelGroups
from ..structure.heads import HeadSearch
from ..tracing import ChannelTrace, convolution_weights
from ..tracing.outputs import Outputs
from .box_trace import BoxTrace
from .freezing import freeze_ignored, freeze_made, freeze_scripted, reads_channels
from .size_log import SizeLog

logger = logging.getLogger(__name__)


def find_groups(
    model: nn.Module,
    example_inputs: Any,
    ignore: Iterable[str] = (),
    *,
    trial: bool = True,
    outputs: ModelOutputs | None = None,
) -> ChannelGroups:
    """Finds the channel groups of a model by following its channels through a forward pass.

    Args:
        model: any module; it is not changed.
        example_inputs: its inputs (a tensor, a tuple, a mapping, or Detectron2's list[dict]).
        ignore: names or patterns (`backbone.stem*`) of modules or tensors that stay whole: all channels that they make
            and all that they read are frozen.
        trial: True to cut and run copies too, and to freeze the groups whose cut breaks the copy.
        outputs: takes the part out of the model's output that counts, e.g. `lambda out: out.logits`; None for all.
            Channels of other outputs are not frozen.

    Returns:
        The groups, and the frozen channels with their reasons.

    Raises:
        InputError: a name in `ignore` matches nothing in the model, the model returns no tensor, it cannot be run on
            the inputs (the cause is kept), or it is no module whose calls can be followed.
    """
    with only(unwrapped(model), outputs):
        return _found(model, example_inputs, ignore, trial)


@on_plain_model
def _found(
    model: nn.Module, inputs: Any, ignore: Iterable[str], trial: bool, heads: Mapping[int, int] | None = None
) -> ChannelGroups:
    """Finds the channel groups; `heads` are the splits that lose whole heads if they are known, see `find_groups`."""
    check_prunable(model, values=trial)
    with outside_inference_mode(), random_states(model):
        shared = SharedMemory(model)
        try:
            own = copied_model(model, share=True)
            guard: AbstractContextManager[None] = nullcontext()
        except Exception as error:  # e.g. a lock, an open file, a tensor with a gradient graph
            if trial:
                raise InputError(
                    f"the model cannot be copied (copy.deepcopy: {first_line(error)}); cuts are tried on copies"
                ) from error
            own, guard = model, untouched(model)
        with guard:
            try:
                search = None if heads is not None else HeadSearch()
                traced = _trace(own, inputs, ignore, shared, heads or {}, search)
                if not trial or search is None or not traced.found.groups:
                    return traced.found
                register_plain(own, traced.found.sizes)
                return _tried(own, inputs, ignore, shared, traced, search)
            finally:
                shared.restore()


def _tried(
    model: nn.Module,
    inputs: Any,
    ignore: Iterable[str],
    shared: SharedMemory,
    traced: _Traced,
    search: HeadSearch,
) -> ChannelGroups:
    """Fits the sizes in the model's code to cuts, and freezes the groups whose cut breaks the model."""
    from .fit_sizes import fit_sizes, live_sizes
    from .rehearsal import CutCopy
    from .trial import freeze_failing

    asks = traced.asks and not traced.trains
    fit = fit_sizes(model, inputs, traced.output, traced.found, shared, asks=asks)
    if fit.stubborn:
        heads = search.with_stubborn(traced.found.heads, fit.stubborn)
        if heads != traced.found.heads:
            traced = _trace(model, inputs, ignore, shared, heads, search)
            asks = traced.asks and not traced.trains
        fit = fit_sizes(model, inputs, traced.output, traced.found, shared, asks=asks, settled=True)
    copies = fit.copies or CutCopy(model, inputs, traced.output, fit.found, shared, asks)
    return live_sizes(freeze_failing(copies, [0] if fit.copies else [], trains=traced.trains))


@dataclass(frozen=True)
class _Traced:
    """A traced model.

    Attributes:
        output: its output.
        found: its groups before any cut is tried.
        trains: True if it runs in training mode, by other code than in evaluation mode.
        asks: True if it runs in training mode, and its code asks for its mode.
    """

    output: Any
    found: ChannelGroups
    trains: bool
    asks: bool


def _trace(
    model: nn.Module,
    inputs: Any,
    ignore: Iterable[str],
    shared: SharedMemory,
    heads: Mapping[int, int],
    search: HeadSearch | None,
) -> _Traced:
    """Traces a copy of a model that shares its parameters, again where splits of attention must lose whole heads.

    Args:
        shared: guards the parameters.
        heads: the splits that lose whole heads in the first trace.
        search: finds those of the next trace; None to trace once.
        model, inputs, ignore: as in `find_groups`.

    Raises:
        InputError: see `find_groups`.
    """
    known = dict(heads)
    done: dict[frozenset[tuple[int, int]], tuple[ChannelTrace, Callable[[], _Traced]]] = {}
    while True:
        key = frozenset(known.items())
        if key not in done:  # where splits stay as they were first, the first trace is the last too
            done[key] = _trace_once(model, inputs, ignore, shared, known)
        trace, traced = done[key]
        now = search.following(trace) if search else known
        if now == known:
            return traced()
        known = now


def _trace_once(
    model: nn.Module, inputs: Any, ignore: Iterable[str], shared: SharedMemory, heads: Mapping[int, int]
) -> tuple[ChannelTrace, Callable[[], _Traced]]:
    """Runs the model once in evaluation mode, and once in training mode if there is other code.

    Returns:
        The trace, and a function that builds the groups.
    """
    state = traced_tensors(model)
    norms = [f"{n}.weight" for n, m in walk(model) if isinstance(m, nn.GroupNorm)]
    trace = BoxTrace(state, norms, heads, convolution_weights(model))
    trace.heads_of_boxes = box_heads(model)
    trace.shared = shared
    widths, outputs, reads = feature_widths(model, trace), Outputs(model, trace), TrainingReads()
    sizes = SizeLog(model, trace)
    watch = SizeWatch(model, sizes.seen, sizes.entered)
    with widths, followed_heads(model, trace), followed_response_norms(model, trace):
        trace.owner = watch.owner
        with inference(model), fixed_proposals(model), outputs, reads, watch, trace:
            output = attempted(call, model, inputs, "the example inputs")
        announced = {name: dict(features) for name, features in widths.found.items()}
        returned = [t for _, t in tensors(output)]
        if not returned:
            raise InputError(
                f"the model returns no tensor, but {type(output).__name__}, so it is unknown which widths must stay; "
                "wrap it in a module that returns its tensors"
            )
        trace.freeze_tensors(returned, MODEL_OUTPUT)
        freeze_scripted(model, trace, state)
        askers = reads.of_unknown_code()
        code = trace.code
        with followed_response_norms(model, trace):
            ran = _follow_training(model, inputs, trace, state, watch, bool(askers))
        trace.unread.freeze(trace.labels)
        own = state_tensors(model)
        state = {n: t for n, t in state.items() if n in own or n in trace.touched}
        trace.owner = str  # the watch refers to the trace: without this circle, what the trace holds is freed at once
        trains = ran and (trace.code != code or any(map(is_held, askers)))
    freeze_made(model, trace, state, training_only(model), "it runs only in training")
    freeze_ignored(model, trace, state, ignore)

    def traced() -> _Traced:
        found = build_groups(model, trace, state, announced, outputs, sizes.finished())
        return _Traced(output, found, trains, ran)

    return trace, traced


def find_again(model: nn.Module, example_inputs: Any, ignore: Iterable[str], found: ChannelGroups) -> ChannelGroups:
    """Finds the same groups after more training, which changes the constants that emptied channels emit.

    Args:
        model: the model in which `found` was found, with other weights.
        example_inputs: its inputs.
        ignore: the same as for `found`.
        found: the earlier groups. Frozen channels stay frozen, without cutting copies again.

    Returns:
        The groups with the new constants. If the model now takes another path through its code and therefore gives
        other groups, `found` itself.
    """
    from .trial import freeze_groups

    now = _found(model, example_inputs, ignore, False, found.heads)
    known = {group.name for group in found}
    reasons = {f.name: f.reason for f in found.frozen}
    again = freeze_groups(now, {g.name: reasons.get(g.name, "") for g in now if g.name not in known})
    parts = [[(s.tensor, s.dim, s.index.tolist()) for g in groups for s in g.slices] for groups in (again, found)]
    return replace(again, widths={**again.widths, **found.widths}) if parts[0] == parts[1] else found


def _follow_training(
    model: nn.Module, inputs: Any, trace: ChannelTrace, state: dict, watch: SizeWatch, asks: bool
) -> bool:
    """Traces the code that runs only in training, and freezes the parameters that no pass reaches.

    If the code runs, an unreached parameter freezes only itself. If it fails, the parameter may belong to it, so the
    layers that may feed it are frozen too.

    Args:
        model: the model.
        inputs: its inputs.
        trace: the trace of the pass in evaluation mode.
        state: the model's tensors by name.
        watch: knows the module whose forward runs, so that a split of attention loses the same heads in both passes.
        asks: True if the model's code asks for its mode.

    Returns:
        True if the model ran in training mode. `trace.code` is then the hash of the operations of this pass.
    """
    ran = False
    if asks or any(name not in trace.touched for name, _ in walk_parameters(model)):
        trace.code, trace.counting, trace.steady = 0, False, True
        try:
            given = training_inputs(model, inputs) if is_detectron_input(inputs) else inputs
            with training_branches(model), watch, trace:
                output = call(model, given)
            trace.freeze_tensors([t for _, t in tensors(output)], f"{MODEL_OUTPUT} in training")
            ran = True
        except Exception as error:  # the model's own code may raise anything; its layers are frozen below
            logger.info("the training branches of the model could not be followed: %s", error)
    reading: dict[int, str] = {}
    for name in (name for name in state if name not in trace.touched):
        for dim in trace.state_dims[name]:
            trace.labels.freeze(dim, "the forward pass does not reach it")
        if not ran and reads_channels(model, name, state[name]):
            module = model.get_submodule(name.rpartition(".")[0])
            reading.setdefault(state[name].shape[1] * getattr(module, "groups", 1), name)
    if reading:
        known = {id(d): d for tap in trace.taps for d in [tap.labels]}
        for dim in known.values():
            if len(dim) in reading:
                reason = f"{reading[len(dim)]}, which the forward pass does not reach, may read it"
                trace.labels.freeze(dim, reason)
    return ran
