"""The order of a forward pass: which module calls which, which tensors each call reads, writes and returns, and when.

From this order follows which calls need not run again in a network that computes the same until some moment: the calls
that have returned by then. Of their results, only those must be kept that the rest of the pass reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import nn

OUTSIDE = -1
"""The number of the caller where no module is running."""


@dataclass
class Seen:
    """What happened to one tensor.

    Attributes:
        since: the moment when it was first an input or a result of a call.
        makers: (moment, call) for each call that returned it.
        uses: (moment, call) for each use, by the innermost running call.
        writes: the same for each change of its values in place.
        views: other tensors of the same memory that later calls returned.
        version: PyTorch's number of changes in place so far.
    """

    since: int
    version: int
    makers: list[tuple[int, int]] = field(default_factory=list)
    uses: list[tuple[float, int]] = field(default_factory=list)
    writes: list[tuple[int, int]] = field(default_factory=list)
    views: list[Seen] = field(default_factory=list)


@dataclass
class Call:
    """One call of a module.

    Attributes:
        name: the module's name.
        caller: the number of the call that runs it, or `OUTSIDE`.
        start: the moment of its start.
        end: the moment when it returned; infinite if it did not.
        results: the tensors in its output, in the order of `sirfp.network.forward.tensors`.
        remembers: True if it changed attributes of its module, or of a module that it called.
    """

    name: str
    caller: int
    start: int
    end: float = inf
    results: list[Seen] = field(default_factory=list)
    remembers: bool = False


class Schedule:
    """The calls of one forward pass, in order of their start.

    Attributes:
        calls: the calls.
        seen: all tensors that were inputs or results of calls.
        first_use: {tensor's name: moment of its first use} of parameters and buffers.
        repeatable: False if another pass may compute something else: it drew random numbers or changed a parameter or
            buffer.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.seen: list[Seen] = []
        self.first_use: dict[str, int] = {}
        self.repeatable = True

    def moment(self, model: nn.Module, names: Collection[str]) -> float:
        """Returns the moment when a pass first calls one of the named modules or uses one of their tensors.

        A module that is not called, and whose tensors no function gets, stands for its parent: its parent may pass its
        weights to a function that cannot be watched.
        """
        called: dict[str, float] = {}
        for call in reversed(self.calls):
            called[call.name] = call.start
        aliases: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            aliases.setdefault(id(module), []).append(name)
        owners: dict[int, float] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        for name, tensor in state(model):
            if name in self.first_use:
                owners[id(tensor)] = min(self.first_use[name], owners.get(id(tensor), inf))
        result = inf
        for given in names:
            name = given
            while True:
                module = modules[name]
                own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
                moments = [called.get(alias, inf) for alias in aliases[id(module)]]
                moments += [owners.get(id(tensor), inf) for tensor in own]
                found = min(moments)
                if found < inf or not name:
                    break
                name = name.rpartition(".")[0]
            result = min(result, found if found < inf else 0)
        return result

    def returned(self, moment: float, care: int = 0) -> dict[int, list[bool]]:
        """Returns the outermost calls that have returned by a moment, and which of their tensors the others read.

        Calls whose effect is more than a new output are left out; their callees are taken instead. They change an
        attribute, or change or return a tensor that is there before the call.

        Args:
            moment: a moment of the pass.
            care: 0 to accept calls that change or return a tensor which is a result of another call of the answer and
                which no running call reads before. What reads it nevertheless, through a view or a second name, finds a
                placeholder and fails. 1 to accept none of them. 2 to treat all results as read, too.

        Returns:
            {number of the call: for each tensor of its output, whether it is read by a call that runs, or at the end}.
        """
        refused: set[int] = set()
        while True:
            covered = self._covered(moment, refused)
            spans = {id(tensor): self._spans(tensor, covered) for tensor in self.seen}
            further = {
                call
                for tensor in self.seen
                for call in self._borrowers(tensor, covered)
                if care > 0 or self._is_real(tensor, spans[id(tensor)], self.calls[call].start)
            }
            if not further:
                break
            refused |= further
        return {
            number: [
                care > 1 or any(read for _, maker, read in spans[id(tensor)] if maker == number)
                for tensor in self.calls[number].results
            ]
            for number, cover in enumerate(covered)
            if cover == number
        }

    def _borrowers(self, tensor: Seen, covered: list[int]) -> set[int]:
        """Returns the replaced calls that change or return a tensor, or a view of it, that is there before them."""
        involved = {covered[call] for _, call in tensor.writes if call != OUTSIDE}
        involved |= {call for _, call in tensor.makers if covered[call] == call}
        for view in tensor.views:
            involved |= {call for _, call in view.makers if covered[call] == call}
        return {call for call in involved if call != OUTSIDE and tensor.since <= self.calls[call].start}

    def _is_real(self, tensor: Seen, spans: list[tuple[float, int, bool]], start: float) -> bool:
        """Returns False if a tensor is a placeholder at the start of a call."""
        before = [read for end, _, read in spans if end <= start]
        return not before or before[-1]

    def _covered(self, moment: float, refused: set[int]) -> list[int]:
        """For each call, the outermost call around it (or itself) that is replaced, or `OUTSIDE` if it runs."""
        result: list[int] = []
        for number, call in enumerate(self.calls):
            above = result[call.caller] if call.caller != OUTSIDE else OUTSIDE
            own = call.end < moment and not call.remembers and number not in refused
            result.append(above if above != OUTSIDE else number if own else OUTSIDE)
        return result

    def _spans(self, tensor: Seen, covered: list[int]) -> list[tuple[float, int, bool]]:
        """For each replaced call that returns a tensor: (its end, its number, whether a running call reads it next).

        "Next" means until another replaced call returns the same tensor.
        """
        makers = [(when, call) for when, call in tensor.makers if covered[call] == call]
        ends = [*(when for when, _ in makers[1:]), inf][: len(makers)]
        running = [use for use, call in tensor.uses if call == OUTSIDE or covered[call] == OUTSIDE]
        return [
            (when, maker, any(when < use <= end for use in running))
            for (when, maker), end in zip(makers, ends, strict=True)
        ]

    def visible(self, replaced: Mapping[int, Any]) -> dict[str, list[int]]:
        """Returns {module: the numbers of its calls}, without the calls inside replaced ones."""
        hidden: list[bool] = []
        result: dict[str, list[int]] = {}
        for number, call in enumerate(self.calls):
            above = call.caller != OUTSIDE and (hidden[call.caller] or call.caller in replaced)
            hidden.append(above)
            if not above:
                result.setdefault(call.name, []).append(number)
        return result


def state(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Returns (name, tensor) of parameters and buffers; a shared tensor once for each of its names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
