"""Finds the sizes that a model's code writes for the dense network, and how a cut network gets its own.

A copy with some channels of every group cut runs with the right sizes put into the calls of PyTorch's functions
(`SizeWatch`). Where the code gives another size than the right one, three remedies are tried in this order:

1. a split of attention that cannot lose the same channel from every head loses whole heads (`sirfp.structure.heads`);
2. an integer attribute of the module, or an integer in a list, that holds the size is set to the right one;
3. the size is replaced in the call (`sirfp.network.sizes`).

The trial (`sirfp.channels.trial`) then proves the result as it does every other cut.
"""

from __future__ import annotations

import logging
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from ..errors import first_line
from ..network.forward import call, inference
from ..network.proposals import fixed_proposals
from ..network.size_watch import Place, SizeWatch
from ..network.sizes import SizesIn, attribute_key, call_key, is_size_key
from ..network.untouched import SharedMemory, copied_model, seeded
from ..structure.groups import INPUT, ChannelGroups, Group, SizeCall
from ..surgery.cut import cut_by
from ..surgery.plan_and_cut import plan_for
from .choice import some_of
from .rehearsal import BOXES, CutCopy
from .trial import failing, freeze_groups

logger = logging.getLogger(__name__)

CANDIDATES = 3
"""How many attributes are tried for one size. A module has few integers of the same value; each more costs a run."""

TURNS = 3
"""Number of choices of widths at which sizes are compared: with a single one, a wrong size may be right by chance."""

Widths = dict[str, dict[str, np.ndarray]]
Wrong = dict[tuple[Place, int], tuple[int, int, SizeCall]]
"""{(place of a call, position): (the size that the code gives, the right size, the call)}."""


@dataclass(frozen=True)
class Fit:
    """What a run with the right sizes shows.

    Attributes:
        found: the groups, with the sizes to set in `widths`; those that cannot be cut in any way are frozen.
        stubborn: splits of attention that cannot lose the same channel from every head.
    """

    found: ChannelGroups
    stubborn: frozenset[int] = frozenset()


def fit_sizes(
    model: nn.Module, inputs: Any, output: Any, found: ChannelGroups, shared: SharedMemory, *, settled: bool = False
) -> Fit:
    """Finds the sizes to set in a cut network.

    Args:
        model: a copy of the dense model that shares its parameters; it is not changed.
        inputs: its inputs.
        output: its output for these inputs.
        found: its groups.
        shared: guards the parameters.
        settled: True if no further split of attention can lose whole heads.

    Returns:
        The groups with the sizes to set; or, unless `settled`, the splits that must lose whole heads first.
    """
    if not any(n is not None for c in found.calls for n in c.sizes_of(np.ones(found.atoms, dtype=bool))):
        return Fit(found)
    run = CorrectedCopy(model, inputs, found, shared)
    # Settled, the sizes at the first choice of widths choose the attributes, and those at the others are seen after.
    error, wrong = run.over_turns(list(found.groups), range(1 if settled else TURNS))
    if not error and not wrong and not settled:
        return Fit(found)
    if error and CutCopy(copied_model(model), inputs, output, found, shared).failure(list(found.groups)) is None:
        return Fit(found)
    if error:
        held = _checked(run, list(found.groups), dict(model.named_modules()))
        found = run.found = replace(found, widths=_joined(found.widths, held))
        run.widths = {}
        if held:
            error, wrong = run.over_turns(list(found.groups), range(1 if settled else TURNS))
    stubborn = frozenset(c.split for _, _, c in wrong.values() if c.split is not None and c.split not in found.heads)
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
        _, wrong = run.over_turns(list(found.groups), range(1, TURNS), still)
    widths = _joined(attributes, _calls(wrong))
    return Fit(replace(found, widths=_joined(found.widths, widths)))


class CorrectedCopy:
    """Cuts copies of a model and runs them with the right sizes in their calls.

    Attributes:
        widths: sizes that are set in the copies before they run.
        wrong: the sizes that the code of the last copy gave wrongly.
        wrong_first: those at the first of several choices of widths.
        failed_in: the name of the module whose code raised the last error, or None.
    """

    def __init__(self, model: nn.Module, inputs: Any, found: ChannelGroups, shared: SharedMemory):
        self.model, self.inputs, self.found, self.shared = model, inputs, found, shared
        self.widths: Widths = {}
        self.wrong: Wrong = {}
        self.wrong_first: Wrong = {}
        self.failed_in: str | None = None
        self._calls: dict[Place, list[SizeCall]] = {}
        for size_call in found.calls:
            self._calls.setdefault(size_call.place, []).append(size_call)

    def over_turns(
        self, groups: list[Group], turns: Iterable[int], earlier: Wrong | None = None
    ) -> tuple[str | None, Wrong]:
        """Runs copies at several choices of widths.

        Args:
            groups: the groups to cut.
            turns: numbers of the choices.
            earlier: the sizes that the code gave wrongly at earlier choices.

        Returns:
            The reason if a copy fails, else None; and the sizes that the code gave wrongly in any of them.
        """
        wrong: Wrong = dict(earlier or {})
        for turn in turns:
            error = self.failure(groups, turn)
            wrong |= self.wrong
            if turn == 0:
                self.wrong_first = self.wrong
            if error is not None or (turn and not wrong):
                return error, wrong
        return None, wrong

    def failure(self, groups: list[Group], turn: int = 0) -> str | None:
        """Cuts some channels of each group in a copy and runs it; returns the reason if it fails, else None."""
        keep = some_of(self.found, groups, turn)
        copied = copied_model(self.model, share=not self.shared.written)
        self.wrong, self.failed_in, made = {}, None, Counter[Place]()

        def corrected(place: Place, given: SizesIn, x: Any, make: Callable[[list], Any]) -> Any:
            known = self._calls.get(place, [])
            made[place] += 1
            if made[place] > len(known) or len(known[made[place] - 1].sizes) != len(given.sizes):
                return make(given.sizes)
            size_call = known[made[place] - 1]
            sizes = list(given.sizes)
            for position, right in enumerate(size_call.sizes_of(keep)):
                if right is not None and sizes[position] not in (right, -1):
                    self.wrong[place, position] = (sizes[position], right, size_call)
                    sizes[position] = right
            return make(sizes)

        plan = plan_for(replace(self.found, widths=_joined(self.found.widths, self.widths)), keep)
        try:
            cut_by(copied, plan)
            with inference(copied), fixed_proposals(copied, BOXES), seeded(copied, 0), SizeWatch(copied, corrected):
                call(copied, self.inputs)
        except Exception as error:  # the model's own code may raise anything
            self.failed_in = _raised_in(copied, error)
            return f"cut, the model fails: {first_line(error)}"
        return None


def _raised_in(model: nn.Module, error: Exception) -> str | None:
    """Returns the name of the innermost module whose code raised an error, or None."""
    names = {id(module): name for name, module in model.named_modules()}
    owners = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((names[owner] for owner in reversed(owners) if owner in names), None)


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
        inputs = _holding_any((c for c in run.found.calls if c.place[2] == INPUT), alike)
        calls = _holding_any((c for c in run.found.calls if c.place[2] != INPUT), alike)
        for tried in filter(None, (inputs, calls, _joined(calls, inputs) if inputs and calls else None)):
            run.widths = _joined(accepted, tried)
            if run.failure(groups) is None or (run.failed_in is not None and type(modules[run.failed_in]) is not kind):
                accepted = run.widths
                break
    return accepted


def _holding_any(calls: Iterable[SizeCall], modules: Mapping[str, nn.Module]) -> Widths:
    """Returns the attributes of modules that hold sizes of calls whose channels can be cut."""
    widths: Widths = {}
    for size_call in calls:
        module = size_call.place[0]
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
            names = _holding(modules[place[0]], size_call, position)
            if atoms is not None and turn < len(names) and names[turn] not in accepted.get(place[0], {}):
                tried.setdefault(place[0], {}).setdefault(names[turn], atoms)
        if not tried:
            break
        run.widths = _joined(accepted, tried)
        if run.failure(groups) is not None:
            continue
        good = {
            module: keys
            for module, keys in tried.items()
            if sum(p[0] == module for p, _ in run.wrong) < sum(p[0] == module for p, _ in before)
        }
        accepted = _joined(accepted, good)
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


def _calls(wrong: Wrong) -> Widths:
    """Returns the sizes to replace in calls."""
    widths: Widths = {}
    for (place, position), (given, _, size_call) in wrong.items():
        module, number, function = place
        atoms, size = size_call.atoms[position], size_call.sizes[position]
        dense = size if atoms is not None and given == size else None
        key = call_key(number, function, position, dense)
        widths.setdefault(module, {})[key] = np.full(size, -1) if atoms is None else atoms
    return widths


def live_sizes(found: ChannelGroups) -> ChannelGroups:
    """Returns the groups without the sizes of calls and attributes whose channels are all frozen."""
    live = {
        (c.place[0], f"call {c.place[1]} {c.place[2]}")
        for c in found.calls
        for a in c.atoms
        if a is not None and (a >= 0).any()
    }

    def changes(module: str, key: str, atoms: np.ndarray) -> bool:
        if key.startswith("call "):
            return (module, " ".join(key.split()[:3])) in live
        return not is_size_key(key) or bool((atoms >= 0).any())

    widths = {m: {k: atoms for k, atoms in keys.items() if changes(m, k, atoms)} for m, keys in found.widths.items()}
    return replace(found, widths={m: keys for m, keys in widths.items() if keys})


def _joined(first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
    return {module: {**first.get(module, {}), **second.get(module, {})} for module in dict.fromkeys([*first, *second])}
