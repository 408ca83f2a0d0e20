"""Finds the sizes that a model's code writes for the dense network, and how a cut network gets its own.

A copy with some channels of every group cut runs with the right sizes put into the calls of PyTorch's functions
(`SizeWatch`). Where the code gives another size than the right one, three remedies are tried in this order:

1. a split of attention that cannot lose the same channel from every head loses whole heads (`sirfp.structure.heads`);
2. an integer attribute of the module, or an integer in a list, that holds the size is set to the right one;
3. the size is replaced in the call (`sirfp.network.sizes`).

Attributes by which the code checks a width are set first, since a copy fails without them. A module that makes other
calls in training mode gets the sizes of those too.

The trial (`sirfp.channels.trial`) then proves the result as it does every other cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from ..network.call_sites import Place
from ..network.sizes import attribute_key, is_call_key, is_size_key, site_key
from ..network.untouched import SharedMemory, copied_model
from ..structure.groups import INPUT, ChannelGroups, Group, SizeCall
from .choice import turns_apart
from .corrected_copy import CorrectedCopy, Widths, Wrong, joined, once, times
from .rehearsal import CutCopy
from .trial import failing, freeze_groups

logger = logging.getLogger(__name__)

CANDIDATES = 3
"""How many attributes are tried for one size. A module has few integers of the same value; each more costs a run."""

TURNS = 3
"""Number of choices of widths at which sizes are compared: with a single one, a wrong size may be right by chance."""


@dataclass(frozen=True)
class Fit:
    """What a run with the right sizes shows.

    Attributes:
        found: the groups, with the sizes to set in `widths`; those that cannot be cut in any way are frozen.
        stubborn: splits of attention that cannot lose the same channel from every head.
        copies: copies of the model in which all groups have passed the first turn of the trial, or None.
    """

    found: ChannelGroups
    stubborn: frozenset[int] = frozenset()
    copies: CutCopy | None = None


def fit_sizes(
    model: nn.Module,
    inputs: Any,
    output: Any,
    found: ChannelGroups,
    shared: SharedMemory,
    *,
    asks: bool = False,
    settled: bool = False,
) -> Fit:
    """Finds the sizes to set in a cut network.

    Args:
        model: a copy of the dense model that shares its parameters; it is not changed.
        inputs: its inputs.
        output: its output for these inputs.
        found: its groups.
        shared: guards the parameters.
        asks: as in `CutCopy`.
        settled: True if no further split of attention can lose whole heads.

    Returns:
        The groups with the sizes to set; or, unless `settled`, the splits that must lose whole heads first.
    """

    def passing() -> CutCopy | None:
        own = copied_model(model, share=not shared.written)
        copies = CutCopy(own, inputs, output, found, shared, asks)
        return copies if copies.failure(list(found.groups)) is None else None

    fit = _fit_evaluation(model, inputs, passing, found, shared, settled)
    if fit.stubborn or not any(c.training for c in fit.found.calls):
        return fit
    widths = _training_sizes(CorrectedCopy(model, inputs, fit.found, shared, training=True))
    if not widths:
        return fit
    return Fit(replace(fit.found, widths=joined(fit.found.widths, widths)))


def _fit_evaluation(
    model: nn.Module,
    inputs: Any,
    passing: Callable[[], CutCopy | None],
    found: ChannelGroups,
    shared: SharedMemory,
    settled: bool,
) -> Fit:
    """Finds the sizes to set for runs in evaluation mode.

    Args:
        passing: cuts all groups in a copy, and returns `Fit.copies`.
        model, inputs, found, shared, settled: as in `fit_sizes`.
    """
    dense = np.ones(found.atoms, dtype=bool)
    sized = [c for c in found.calls if not c.training and any(n is not None for n in c.sizes_of(dense))]
    if not sized:
        return Fit(found)
    checks = not any(map(_sets_width, sized))
    if checks and not settled and (copies := passing()):
        return Fit(found, copies=copies)
    run = CorrectedCopy(model, inputs, found, shared)
    # Settled, the sizes at the first choice of widths choose the attributes, and those at the others are seen after.
    error, wrong = run.over_turns(list(found.groups), range(1))
    if not settled and not error and not _all_stubborn(found, wrong):
        error, wrong = run.over_turns(list(found.groups), _later(found), wrong)
    if not error and not wrong and not settled:
        return Fit(found)
    if error and not (checks and not settled) and (copies := passing()):
        return Fit(found, copies=copies)
    if error:
        held = _checked(run, list(found.groups), dict(model.named_modules()))
        found = run.found = replace(found, widths=joined(found.widths, held))
        run.widths = {}
        if held:
            error, wrong = run.over_turns(list(found.groups), (0,) if settled else (0, *_later(found)))
    stubborn = _stubborn(found, wrong)
    if stubborn and not settled:
        return Fit(found, stubborn)
    if error:
        bad = failing(run, list(found.groups), 0)
        found = freeze_groups(found, bad)
        if not found.groups:
            return Fit(found)
        run = CorrectedCopy(model, inputs, found, shared)
        run.over_turns(list(found.groups), range(1))
    attributes, still = _attributes(run, list(found.groups), dict(model.named_modules()))
    if attributes or error or settled:
        run.widths = attributes
        _, wrong = run.over_turns(list(found.groups), _later(found), still)
    widths = joined(attributes, _calls([c for c in found.calls if not c.training], wrong))
    return Fit(replace(found, widths=joined(found.widths, widths)))


def _sets_width(size_call: SizeCall) -> bool:
    """True if a call gives a size of channels that can be cut; code that only checks widths mostly runs when cut."""
    return size_call.place.function != INPUT and any(a is not None and (a >= 0).any() for a in size_call.atoms)


def _later(found: ChannelGroups) -> tuple[int, ...]:
    """The numbers of the choices of widths after the first at which sizes are compared."""
    return (*turns_apart(found), *range(1, TURNS))


def _stubborn(found: ChannelGroups, wrong: Wrong) -> frozenset[int]:
    """Returns the splits of attention that cannot lose the same channel from every head."""
    return frozenset(c.split for _, _, c in wrong.values() if c.split is not None and c.split not in found.heads)


def _all_stubborn(found: ChannelGroups, wrong: Wrong) -> bool:
    """True if some split cannot lose the same channel from every head in each module that can lose some."""
    modules = {
        c.place.module
        for c in found.calls
        if c.split is not None and c.split not in found.heads
        if any(a is not None and (a >= 0).any() for a in c.atoms)
    }
    stubborn = _stubborn(found, wrong)
    return bool(modules) and modules <= {c.place.module for _, _, c in wrong.values() if c.split in stubborn}


def _training_sizes(run: CorrectedCopy) -> Widths:
    """Returns the sizes of the calls in training mode, of modules where one is wrong or is replaced in evaluation mode.

    Args:
        run: runs in training mode.
    """
    calls = [c for c in run.found.calls if c.training]
    replaced = {module for module, keys in run.found.widths.items() if any(map(is_call_key, keys))}
    run.widths = _calls(calls, _dense_sizes(calls, replaced), training=True)
    _, wrong = run.over_turns(list(run.found.groups), (0, *_later(run.found)))
    modules = replaced | {place.module for place, _ in wrong}
    return _calls(calls, {**_dense_sizes(calls, modules), **wrong}, training=True)


def _dense_sizes(calls: Iterable[SizeCall], modules: Set[str]) -> Wrong:
    """Returns the sizes in calls of modules that hold channels, as if the code gave those of the dense network."""
    return {
        (size_call.place, position): (size, size, size_call)
        for size_call in calls
        if size_call.place.module in modules
        for position, (size, atoms) in enumerate(zip(size_call.sizes, size_call.atoms, strict=True))
        if atoms is not None and size != -1
    }


def _checked(run: CorrectedCopy, groups: list[Group], modules: Mapping[str, nn.Module]) -> Widths:
    """Finds the attributes by which modules check their widths, as in `assert x.shape[-1] == self.dim`.

    The attributes of the module that raised the error and of all others of its class are set together: those that hold
    a width of an input, those that hold a size in a call, or both.

    Args:
        run: has failed without any attribute.
        groups: the groups.
        modules: the model's modules by name.

    Returns:
        The attributes; empty if setting them does not help.
    """
    accepted: Widths = {}
    kinds: set[type] = set()
    while run.failed_in is not None and (kind := type(modules[run.failed_in])) not in kinds:
        kinds.add(kind)
        alike = {name: module for name, module in modules.items() if type(module) is kind}
        inputs = _holding_any((c for c in run.found.calls if c.place.function == INPUT), alike)
        calls = _holding_any((c for c in run.found.calls if c.place.function != INPUT), alike)
        for tried in filter(None, (inputs, calls, joined(calls, inputs) if inputs and calls else None)):
            run.widths = joined(accepted, tried)
            if run.failure(groups) is None or (run.failed_in is not None and type(modules[run.failed_in]) is not kind):
                accepted = run.widths
                break
    return accepted


def _holding_any(calls: Iterable[SizeCall], modules: Mapping[str, nn.Module]) -> Widths:
    """Returns the attributes of modules that hold sizes of calls whose channels can be cut."""
    widths: Widths = {}
    for size_call in calls:
        module = size_call.place.module
        for position, atoms in enumerate(size_call.atoms):
            if module in modules and atoms is not None and (atoms >= 0).any():
                for key in _holding(modules[module], size_call, position):
                    widths.setdefault(module, {}).setdefault(key, atoms)
    return widths


def _attributes(run: CorrectedCopy, groups: list[Group], modules: Mapping[str, nn.Module]) -> tuple[Widths, Wrong]:
    """Finds the attributes that, when set, make the code give right sizes.

    Args:
        run: has run at the first choice of widths, without any attribute.
        groups: the groups.
        modules: the model's modules by name.

    Returns:
        The attributes, and the sizes that the code still gives wrongly at the first choice.
    """
    accepted: Widths = {}
    before = dict(run.wrong_first)
    for turn in range(CANDIDATES):
        tried: Widths = {}
        for (place, position), (_, _, size_call) in before.items():
            atoms = size_call.atoms[position]
            names = _holding(modules[place.module], size_call, position)
            if atoms is not None and turn < len(names) and names[turn] not in accepted.get(place.module, {}):
                tried.setdefault(place.module, {}).setdefault(names[turn], atoms)
        if not tried:
            break
        run.widths = joined(accepted, tried)
        if run.failure(groups) is not None:
            continue
        good = {
            module: keys
            for module, keys in tried.items()
            if sum(p.module == module for p, _ in run.wrong) < sum(p.module == module for p, _ in before)
        }
        accepted = joined(accepted, good)
        if len(good) < len(tried):
            run.widths = accepted
            run.failure(groups)
        before = dict(run.wrong)
    return accepted, before


def _holding(module: nn.Module, size_call: SizeCall, position: int) -> list[str]:
    """Returns the keys of the attributes of a module that hold a size of a call, the likeliest first."""
    size = size_call.sizes[position]
    lists, numbers, parts = [], [], []
    for name, value in vars(module).items():
        if type(value) is int and value == size:
            numbers.append(attribute_key(name))
        elif isinstance(value, (list, tuple)) and all(type(n) is int for n in value):
            if tuple(value) == size_call.sizes:
                lists.append(attribute_key(name, position))
            else:
                parts += [attribute_key(name, i) for i, n in enumerate(value) if n == size]
    return [*lists, *numbers, *parts]


def _calls(calls: Iterable[SizeCall], wrong: Wrong, *, training: bool = False) -> Widths:
    """Returns the sizes to replace in calls.

    The calls of one site share a key where they hold the same channels, so that a loop over images may have more or
    fewer rounds than with the example inputs. Else each round has its own key, and they begin anew after the last.

    Args:
        calls: all calls of the mode.
        wrong: the sizes that the code gives wrongly.
        training: True for calls in training mode.
    """
    widths: Widths = {}
    sites: dict[Place, list[SizeCall]] = {}
    for size_call in calls:
        sites.setdefault(size_call.place.first, []).append(size_call)
    for (place, position), (given, _, size_call) in wrong.items():
        atoms, size = size_call.atoms[position], size_call.sizes[position]
        dense = None
        if atoms is None:
            atoms = np.full(size, -1)
        elif times(given, size):
            atoms = once(atoms)
            dense = len(atoms)
        period = _period(sites[place.first], position)
        key = site_key(place, position, dense, period, training=training)
        widths.setdefault(place.module, {})[key] = atoms
    return widths


def _period(calls: list[SizeCall], position: int) -> int:
    """Returns the number of rounds after which the calls of a site hold the same channels again at a position."""
    rounds: list[set] = [set() for _ in range(max(c.rounds for c in calls))]
    for size_call in calls:
        rounds[size_call.place.round].add(_content(size_call, position))
    return next(n for n in range(1, len(rounds) + 1) if rounds[n:] == rounds[:-n])


def _content(size_call: SizeCall, position: int) -> tuple:
    """Returns what a call holds at a position: channels, any number of times, or a constant."""
    if position >= len(size_call.sizes):
        return (len(size_call.sizes),)
    atoms = size_call.atoms[position]
    if atoms is None:
        return len(size_call.sizes), size_call.fixed[position], size_call.sizes[position]
    return len(size_call.sizes), once(atoms).tobytes()


def live_sizes(found: ChannelGroups) -> ChannelGroups:
    """Returns the groups without the sizes of calls in modules that lose no channels, and of attributes that stay.

    A call whose own channels are all frozen may take its size from another width that is cut, such as the width of
    attention's heads from that of its input.
    """
    tensors = {piece.tensor for group in found for piece in group.slices}
    calls = {c.place.module for c in found.calls for a in c.atoms if a is not None and (a >= 0).any()}

    def changes(module: str, key: str, atoms: np.ndarray) -> bool:
        if is_call_key(key):
            return module in calls or any(name.startswith(f"{module}.".lstrip(".")) for name in tensors)
        return not is_size_key(key) or bool((atoms >= 0).any())

    widths = {m: {k: atoms for k, atoms in keys.items() if changes(m, k, atoms)} for m, keys in found.widths.items()}
    return replace(found, widths={m: keys for m, keys in widths.items() if keys})
