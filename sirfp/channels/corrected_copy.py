"""Cuts copies of a model and runs them with the right sizes in the calls of their code."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ..errors import first_line
from ..network.call_sites import Place
from ..network.detectron import training_inputs
from ..network.forward import call, inference, is_detectron_input, training_branches
from ..network.proposals import BOXES, fixed_proposals
from ..network.size_calls import SizesIn
from ..network.size_watch import SizeWatch
from ..network.untouched import SharedMemory, copied_model, seeded
from ..structure.groups import ChannelGroups, Group, SizeCall
from ..surgery.cut import cut_by
from ..surgery.plan_and_cut import cuts_only
from ..tracing.functions import FunctionWatch
from .choice import numbers_kept, some_of, turns_apart

Widths = dict[str, dict[str, np.ndarray]]
"""{module: {key of an attribute or a call (`sirfp.network.sizes`): the atom of each channel}}."""

Wrong = dict[tuple[Place, int], tuple[int, int, SizeCall]]
"""{(place of a call, position): (the size that the code gives, the right size, the call)}."""


class CorrectedCopy:
    """Cuts copies of a model and runs them with the right sizes in their calls.

    Args:
        model, inputs, found, shared: as in `fit_sizes`.
        training: True to run them in training mode, with the right sizes of the modules that make other calls in it.

    Attributes:
        widths: sizes that are set in the copies before they run.
        wrong: the sizes that the code of the last copy gave wrongly.
        wrong_first: those at the first of several choices of widths.
        failed_in: the name of the module whose code raised the last error, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        found: ChannelGroups,
        shared: SharedMemory,
        *,
        training: bool = False,
    ):
        self.model, self.inputs, self.found, self.shared, self.training = model, inputs, found, shared, training
        self.widths: Widths = {}
        self.wrong: Wrong = {}
        self.wrong_first: Wrong = {}
        self.failed_in: str | None = None
        self._calls: dict[Place, list[SizeCall]] = {}
        for size_call in (c for c in found.calls if c.training == training):
            self._calls.setdefault(size_call.place, []).append(size_call)

    def over_turns(
        self, groups: list[Group], turns: Iterable[int], earlier: Wrong | None = None
    ) -> tuple[str | None, Wrong]:
        """Runs copies at several choices of widths, until one after the first shows no more wrong sizes.

        The choices of `turns_apart` count as one, since together they cut all groups.

        Args:
            groups: the groups to cut.
            turns: numbers of the choices.
            earlier: the sizes that the code gave wrongly at earlier choices.

        Returns:
            The reason if a copy fails, else None; and the sizes that the code gave wrongly in any of them.
        """
        wrong: Wrong = dict(earlier or {})
        apart, more = turns_apart(self.found), set[tuple[Place, int]]()
        for turn in turns:
            error = self.failure(groups, turn)
            more |= self.wrong.keys() - wrong.keys()
            # A size that the code once gives as neither the right nor the dense one follows from another width.
            wrong |= {key: seen for key, seen in self.wrong.items() if key not in wrong or _is_dense(wrong[key], key)}
            if turn == 0:
                self.wrong_first = self.wrong
            if error is not None or (turn and turn not in apart[:-1] and not more):
                return error, wrong
            if turn not in apart[:-1]:
                more.clear()
        return None, wrong

    def failure(self, groups: list[Group], turn: int = 0) -> str | None:
        """Cuts some channels of each group in a copy and runs it; returns the reason if it fails, else None."""
        keep = some_of(self.found, groups, turn, uneven=True)
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
                if right is None:
                    continue
                right *= max(1, times(sizes[position], size_call.sizes[position]))
                at_end = given.axes and right == x.shape[given.axes[position]]  # a bound behind the end is right too
                if sizes[position] not in (right, -1, size_call.sizes[position] if at_end else right):
                    self.wrong[place, position] = (sizes[position], right, size_call)
                    sizes[position] = right
            return make(sizes)

        plan = cuts_only(replace(self.found, widths=joined(self.found.widths, self.widths)), keep)
        try:
            cut_by(copied, plan)
            with self._mode(copied), fixed_proposals(copied, BOXES), seeded(copied, 0), SizeWatch(copied, corrected):
                given = self.inputs
                if self.training and is_detectron_input(given):
                    given = training_inputs(copied, given)
                call(copied, given)
        except Exception as error:  # the model's own code may raise anything
            self.failed_in = _raised_in(copied, error)
            return f"cut, the model fails: {first_line(error)}"
        return None

    def kept(self, groups: list[Group], turn: int) -> dict[str, int]:
        """Returns how many atoms of each group a copy keeps, {group name: number}."""
        return numbers_kept(self.found, groups, turn, uneven=True)

    @contextmanager
    def _mode(self, copied: nn.Module) -> Iterator[None]:
        with training_branches(copied) if self.training else inference(copied), FunctionWatch(steady=self.training):
            yield


def _is_dense(wrong: tuple[int, int, SizeCall], key: tuple[Place, int]) -> bool:
    """True if the size that the code gave is that of the dense network, or a multiple of it."""
    given, _, size_call = wrong
    return times(given, size_call.sizes[key[1]]) > 0


def times(given: int, dense: int) -> int:
    """How many times the dense size a given size is; 0 if it is no multiple.

    A multiple has a factor that is no width, such as a number of boxes.
    """
    return given // dense if dense > 0 and given % dense == 0 else 0


def once(atoms: np.ndarray) -> np.ndarray:
    """Returns the atoms of one dimension without repetitions of the whole, or of each by the same number.

    A size such as `images * channels` holds the channels of each image. Of other inputs it is another multiple of them.
    """
    for parts in range(len(atoms), 1, -1):
        if len(atoms) % parts == 0 and (atoms.reshape(parts, -1) == atoms[: len(atoms) // parts]).all():
            return once(atoms[: len(atoms) // parts])
        if len(atoms) % parts == 0 and (atoms.reshape(-1, parts) == atoms[::parts, None]).all():
            return once(atoms[::parts])
    return atoms


def _raised_in(model: nn.Module, error: Exception) -> str | None:
    """Returns the name of the innermost module whose code raised an error, or None."""
    names = {id(module): name for name, module in model.named_modules()}
    owners = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((names[owner] for owner in reversed(owners) if owner in names), None)


def joined(first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]) -> dict[str, dict]:
    """Returns two tables of widths in one; of a key in both, the second."""
    return {module: {**first.get(module, {}), **second.get(module, {})} for module in dict.fromkeys([*first, *second])}
