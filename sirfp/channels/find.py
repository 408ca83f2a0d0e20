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
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import InputError, first_line
from ..network.attention import followed_heads
from ..network.batches import attempted
from ..network.branches import training_only
from ..network.detectron import feature_widths, training_inputs
from ..network.elsewhere import check_available, on_device
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

if TYPE_CHECKING:
    from .rehearsal import CutCopy

logger = logging.getLogger(__name__)


def find_groups(
    model: nn.Module,
    example_inputs: Any,
    ignore: Iterable[str] = (),
    *,
    trial: bool = True,
    outputs: ModelOutputs | None = None,
    device: str | torch.device | None = None,
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
        device: where a copy of the model runs for this, e.g. "cpu" for a model on a GPU, whose libraries plan each new
            shape of the trial anew. None: where the model is.

    Returns:
        The groups, and the frozen channels with their reasons.

    Raises:
        InputError: a name in `ignore` matches nothing in the model, the model returns no tensor, it cannot be run on
            the inputs (the cause is kept), it is no module whose calls can be followed, or there is no such device.
    """
    if device is not None:
        check_available(device, "device")
        copied, inputs = on_device(unwrapped(model), example_inputs, device)
        return _returned(find_groups(copied, inputs, ignore, trial=trial, outputs=outputs), model)
    with only(unwrapped(model), outputs):
        return _found(model, example_inputs, ignore, trial)


def _returned(found: ChannelGroups, model: nn.Module) -> ChannelGroups:
    """Returns groups that a copy on another device has shown, with their tensors where the model is."""
    state = state_tensors(unwrapped(model))
    moved = (replace(e, emitted=e.emitted.to(state[e.weight].device)) for e in found.emissions)
    return replace(found, emissions=tuple(moved))


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
    whole: bool = False,
) -> ChannelGroups:
    """Fits the sizes in the model's code to cuts, and freezes the groups whose cut breaks the model.

    Args:
        whole: True to run the model on the given inputs only, not on smaller ones (`sirfp.channels.smaller_inputs`).
        model, inputs, ignore, shared, traced, search: as in `_trace`.
    """
    from .fit_sizes import fit_sizes, live_sizes
    from .rehearsal import CutCopy
    from .trial import freeze_failing

    given, known = (inputs, traced) if whole else _on_smaller(model, inputs, ignore, shared, traced)
    asks = known.asks and not known.trains
    fit = fit_sizes(model, given, known.output, known.found, shared, asks=asks)
    if fit.stubborn:
        heads = search.with_stubborn(traced.found.heads, fit.stubborn)
        if heads != traced.found.heads:
            traced = _trace(model, inputs, ignore, shared, heads, search)
            given, known = (inputs, traced) if whole else _on_smaller(model, inputs, ignore, shared, traced)
            asks = known.asks and not known.trains
        fit = fit_sizes(model, given, known.output, known.found, shared, asks=asks, settled=True)
    own = model if given is inputs else copied_model(model, share=not shared.written)  # the trial changes constants
    copies = fit.copies or CutCopy(own, given, known.output, fit.found, shared, asks)
    found = live_sizes(freeze_failing(copies, [0] if fit.copies else [], trains=known.trains))
    if given is not inputs and (
        len(found.groups) < len(traced.found.groups) or not _shows(copies, known, model, inputs, traced)
    ):
        logger.info("smaller inputs do not show all that cuts do; they are tried on the given ones")
        return _tried(model, inputs, ignore, shared, traced, search, whole=True)
    return found


def _shows(copies: CutCopy, known: _Traced, model: nn.Module, inputs: Any, traced: _Traced) -> bool:
    """True if a cut changes the same on the given inputs as on the smaller ones of a trial that all groups passed.

    Args:
        copies: cuts copies of the model and runs them on the smaller inputs.
        known: what a trace with the smaller inputs found.
        model, inputs, traced: as in `_tried`.
    """
    from .rehearsal import TRAINING
    from .rehearsal import CutCopy as Copies
    from .smaller_inputs import same_changes

    if copies.trains and not traced.trains:
        return False  # only a cut copy runs other code in training, which no trace has seen
    found, shared = copies.found, copies.shared
    whole = Copies(copied_model(model, share=not shared.written), inputs, traced.output, found, shared)
    groups = list(found.groups)
    try:
        for turn, *dense in zip((0, TRAINING), traced.operations, known.operations, strict=False):
            cut = whole.operations(groups, turn), copies.operations(groups, turn)
            if not same_changes((dense[0], dense[1]), cut):
                return False
    except Exception as error:  # the model's own code may raise anything
        logger.debug("a cut copy fails on the given inputs: %s", error)
        return False
    return True


def _on_smaller(
    model: nn.Module, inputs: Any, ignore: Iterable[str], shared: SharedMemory, traced: _Traced
) -> tuple[Any, _Traced]:
    """Returns the inputs for the trial and what a trace with them found: smaller ones if they show the same."""
    from .smaller_inputs import FLOPS, ratios, same_groups, smaller_inputs

    try:
        smaller = list(smaller_inputs(inputs)) if traced.found.flops() >= FLOPS else []
    except Exception as error:  # e.g. a nested tensor
        logger.debug("the inputs cannot be made smaller: %s", error)
        smaller = []
    for given in smaller:
        try:
            copied = copied_model(model, share=not shared.written)
            other = _trace(copied, given, ignore, shared, traced.found.heads, None)
        except Exception as error:  # the model's own code may raise anything
            logger.debug("the model does not run on smaller inputs: %s", error)
            continue
        passes = zip(traced.operations, other.operations, strict=False)
        same = same_groups(traced.found, other.found) and all(ratios(*two) is not None for two in passes)
        if same and (other.trains, other.asks) == (traced.trains, traced.asks):
            return given, replace(other, found=replace(traced.found, calls=other.found.calls))
    return inputs, traced


@dataclass(frozen=True)
class _Traced:
    """A traced model.

    Attributes:
        output: its output.
        found: its groups before any cut is tried.
        trains: True if it runs in training mode, by other code than in evaluation mode.
        asks: True if it runs in training mode, and its code asks for its mode.
        operations: those of the pass in evaluation mode and, if it `trains`, of the other (`ChannelTrace.ran`).
    """

    output: Any
    found: ChannelGroups
    trains: bool
    asks: bool
    operations: tuple[list[tuple], ...]


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
            once = _trace_once(model, inputs, ignore, shared, known, search)
            if once is None:
                known = {}
                continue
            done[key] = once
        trace, traced = done[key]
        now = search.following(trace) if search else known
        if now == known:
            return traced()
        known = now


def _trace_once(
    model: nn.Module,
    inputs: Any,
    ignore: Iterable[str],
    shared: SharedMemory,
    heads: Mapping[int, int],
    search: HeadSearch | None,
) -> tuple[ChannelTrace, Callable[[], _Traced]] | None:
    """Runs the model once in evaluation mode, and once in training mode if there is other code.

    Returns:
        The trace, and a function that builds the groups; None if `HeadSearch.settles` after the first pass.
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
        evaluated = trace.ran
        if search is not None and search.settles(trace):
            trace.owner = str  # see below
            return None
        with followed_response_norms(model, trace):
            ran = _follow_training(model, inputs, trace, state, watch, bool(askers))
        trace.unread.freeze(trace.labels)
        own = state_tensors(model)
        late = next((name for name, _ in walk_parameters(model) if name not in trace.state_dims), None)
        if late is not None:
            raise InputError(f"the model makes {late!r} during its first call; call the model once before")
        state = {n: t for n, t in state.items() if n in own or n in trace.touched}
        trace.owner = str  # the watch refers to the trace: without this circle, what the trace holds is freed at once
        trains = ran and (trace.ran != evaluated or any(map(is_held, askers)))
    freeze_made(model, trace, state, training_only(model), "it runs only in training")
    freeze_ignored(model, trace, state, ignore)

    def traced() -> _Traced:
        found = build_groups(model, trace, state, announced, outputs, sizes.finished())
        return _Traced(output, found, trains, ran, (evaluated, trace.ran) if trains else (evaluated,))

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
        True if the model ran in training mode. `trace.ran` then holds the operations of this pass.
    """
    ran = False
    if asks or any(name not in trace.touched for name, _ in walk_parameters(model)):
        trace.ran, trace.counting, trace.steady = [], False, True
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
