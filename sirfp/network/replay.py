"""Runs only the part of a network that comes after its first changed module.

Loss curves run a network many times, each time with another group of channels cut. All that comes before the first
changed module computes the same in every copy. It is computed once, by the dense network, and recorded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn

from .forward import tensors
from .schedule import Schedule
from .survey import replaced_forwards, survey

MOST_CARE = 2
"""The largest `care` of `Schedule.returned`."""


class Replay:
    """Replaces the calls before the first changed module by their recorded outputs.

    Recorded are the outermost calls that return before the first call of a changed module, and of their outputs only
    the tensors that the rest of the pass reads; all others are placeholders without values. What is computed between
    calls, outside modules, is computed anew. Outputs are bit for bit those of a full run where the network computes
    the same values for the same inputs each time.

    Full runs take the place of replays where a pass draws random numbers or changes parameters or buffers, and where a
    replay turns out to need a value that was not recorded. A pass that reads gradients needs full runs.

    Args:
        model: the dense network. It must not change while this object is in use.
        batches: the inputs.
        run: `run(model, batch)` runs a network, without gradients, and returns what is wanted, e.g. its outputs. It
            must treat a copy of the network as it treats the network itself.

    Attributes:
        outputs: what `run` returned for the dense network, for each batch.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], run: Callable[[nn.Module, Any], Any]):
        self.model, self.batches, self._run = model, batches, run
        self.outputs: list[Any] = []
        self._schedules: list[Schedule] = []
        self._records: list[dict[int, Any] | None] = [None for _ in batches]
        self._care = 0
        self._names: Collection[str] = ()
        for batch in batches:
            schedule, output = survey(model, partial(run, model, batch))
            self.outputs.append(output)
            self._schedules.append(schedule)

    def moment(self, names: Collection[str]) -> float:
        """Returns a number that orders sets of changed modules by their first call, the earliest first.

        Args:
            names: names of all modules that change.
        """
        return self._schedules[0].moment(self.model, names) if self._schedules else 0.0

    def prepare(self, names: Collection[str]) -> bool:
        """Records what copies need in which the named modules change, and drops what only others needed.

        Cheapest in the order of `moment`, because a record starts from the last one.

        Args:
            names: names of all modules that change: those whose tensors or attributes change.

        Returns:
            False if no batch has a call that can be replaced, so that `run` runs the whole network.
        """
        self._names = tuple(names)
        return any([self._prepare(number) for number in range(len(self.batches))])

    def _prepare(self, number: int) -> bool:
        schedule, old = self._schedules[number], self._records[number] or {}
        self._records[number] = None
        if not schedule.repeatable:
            return False
        needed = schedule.returned(schedule.moment(self.model, self._names), self._care)
        with torch.no_grad():
            for start in [old, {}] if old else [{}]:
                records = self._record(number, needed, start)
                if records is not None:
                    self._records[number] = records
                    return bool(records)
        return False

    def _record(self, number: int, needed: dict[int, list[bool]], start: dict[int, Any]) -> dict[int, Any] | None:
        """Runs the dense network until all needed calls have returned.

        Args:
            number: of the batch.
            needed: {call: which of its tensors are read}.
            start: the records of an earlier moment.

        Returns:
            {call: its output}; None if not all could be recorded.
        """
        records = {
            call: _reduced(start[call], read)
            for call, read in needed.items()
            if call in start and _holds(start[call], read)
        }
        if len(records) == len(needed):
            return records
        schedule = self._schedules[number]
        missing = {schedule.calls[call].name for call in needed if call not in records}

        def keep(call: int, output: Any) -> None:
            if call in needed and call not in records:
                records[call] = _recorded(output, needed[call])
                if len(records) == len(needed):
                    raise _Recorded

        try:
            with suppress(_Recorded), _replacing(self.model, schedule, start, missing, keep):
                self._run(self.model, self.batches[number])
        except Exception:  # a placeholder was read, or an output cannot be copied
            return None
        return records if len(records) == len(needed) else None

    @contextmanager
    def replaying(self, model: nn.Module, number: int) -> Iterator[None]:
        """Replaces, while active, calls by recorded outputs, for one pass of one batch.

        Args:
            model: a copy of the dense network in which only modules named to `prepare` differ.
            number: of the batch.
        """
        with _replacing(model, self._schedules[number], self._records[number] or {}):
            yield

    def run(self, model: nn.Module, number: int) -> Any:
        """Runs a copy on a batch, only the calls after the first change where possible.

        Args:
            model: a copy of the dense network in which only modules named to `prepare` differ.
            number: of the batch.

        Returns:
            What `run` of this object returns for the whole network.
        """
        while self._records[number]:
            with suppress(Exception):  # an error of the network itself comes again in the full run
                with self.replaying(model, number):
                    output = self._run(model, self.batches[number])
                if not any(tensor.is_meta for _, tensor in tensors(output)):
                    return output
            self._records[number] = None
            if self._care < MOST_CARE:
                self._care += 1
                self._prepare(number)
        return self._run(model, self.batches[number])


class _Recorded(BaseException):
    """Ends a pass when all is recorded; not an Exception, so that no network catches it."""


@contextmanager
def _replacing(
    model: nn.Module,
    schedule: Schedule,
    records: Mapping[int, Any],
    watched: Collection[str] = (),
    see: Callable[[int, Any], None] | None = None,
) -> Iterator[None]:
    """Replaces recorded calls, and passes the outputs of other calls of the watched modules to `see`."""
    visible = schedule.visible(records)
    names = {schedule.calls[call].name for call in records} | set(watched)

    def wrapper(name: str, module: nn.Module, forward: Callable) -> Callable:
        queue = iter(visible.get(name, ()))

        def forward_or_record(*args: Any, **kwargs: Any) -> Any:
            call = next(queue, None)
            if call is not None and call in records:
                return _fresh(records[call])
            output = forward(*args, **kwargs)
            if see is not None and call is not None:
                see(call, output)
            return output

        return forward_or_record

    with replaced_forwards(model, names, wrapper):
        yield


def _recorded(output: Any, read: Sequence[bool]) -> Any:
    """Copies an output; tensors that are not read become placeholders."""
    if len(list(tensors(output))) != len(read):
        raise ValueError("the pass returned other tensors than before")
    return _copied(output, read, lambda tensor: tensor.detach().clone())


def _reduced(record: Any, read: Sequence[bool]) -> Any:
    """Returns a record without the tensors that are not read any more."""
    return _copied(record, read, lambda tensor: tensor)


def _copied(output: Any, read: Sequence[bool], keep: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Copies an output with `keep` of its tensors that are read, and with tensors of the device `meta` for others."""
    found = [tensor for _, tensor in tensors(output)]
    kept = {id(tensor): keep(tensor) for tensor, needed in zip(found, read, strict=True) if needed}
    placeholders = {id(t): torch.empty_like(t, device="meta") for t in found if id(t) not in kept}
    return copy.deepcopy(output, {**kept, **placeholders})


def _fresh(record: Any) -> Any:
    """Copies a recorded output, because the network may change it in place."""
    return copy.deepcopy(record, {id(t): t if t.is_meta else t.clone() for _, t in tensors(record)})


def _holds(record: Any, read: Sequence[bool]) -> bool:
    return not any(needed and tensor.is_meta for needed, (_, tensor) in zip(read, tensors(record), strict=True))
