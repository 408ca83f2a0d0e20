"""Chooses the splits of attention that lose whole heads.

A reshape that splits channels, such as (b, n, heads x width) to (b, n, heads, width), first loses the same index from
every head. Where this cannot be, because the scale of attention follows the width or the code writes the width, the
splits of this attention lose whole heads in the next trace.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..tracing import ChannelTrace
from ..tracing.channel_labels import Split


class HeadSearch:
    """Finds the splits that lose whole heads, from trace to trace.

    All splits of one module that take part in attention change together, because attention joins their heads. Any other
    split changes only if its channels are frozen. If whole heads cannot be removed along one dimension either, the next
    outer one is tried; after the last, the splits stay as they were first.
    """

    def __init__(self) -> None:
        self._settled: set[int] = set()  # splits that stay as they were first
        self._joined: list[list[int]] = []  # the splits of each attention
        self._known: dict[int, Split] = {}  # the splits of the last trace that ran in both modes

    def settles(self, trace: ChannelTrace) -> bool:
        """True if a pass in evaluation mode shows that no split loses whole heads, so that the trace is of no use.

        A pass in training mode only ties and freezes more labels. So the splits of a module stay as they were first if
        one of them is frozen along its last dimension already. All of them must, and no other split may change. Splits
        that only run in training mode are known from the trace before.

        Args:
            trace: a trace that has run in evaluation mode, but not in training mode.
        """
        if not trace.heads or not (self._known.keys() | trace.splits.keys()) - trace.heads.keys() <= self._settled:
            return False
        later = {n: split for n, split in self._known.items() if n > trace.operations}
        splits = {**later, **trace.splits}
        if not trace.heads.keys() <= splits.keys():
            return False
        components = trace.labels.components()
        frozen, stuck = _frozen(trace, components), set()
        for number, k in trace.heads.items():
            split = splits[number]
            labels = split.whole if number in later else split.labels
            last = k + 1 >= split.depth and (number not in later or int(labels.max()) < trace.given)
            if last and frozen[components[labels]].all():
                stuck.add(split.owner)
        if {splits[number].owner for number in trace.heads} != stuck:
            return False
        self._settled.update(trace.heads)
        return True

    def following(self, trace: ChannelTrace) -> dict[int, int]:
        """Returns the splits that lose whole heads in the next trace, {number of the operation: k}.

        Args:
            trace: a trace that has run.
        """
        heads = dict(trace.heads)
        self._known = dict(trace.splits)
        if not trace.splits:
            return heads
        components = trace.labels.components()
        frozen = _frozen(trace, components)
        attended = np.zeros(len(components), dtype=bool)
        attended[components[np.concatenate(trace.attended)] if trace.attended else []] = True
        modules: dict[tuple[str, int], list[int]] = {}
        for number, split in trace.splits.items():
            joined = number in heads or attended[components[split.labels]].any()
            modules.setdefault((split.owner, -1 if joined else number), []).append(number)
        self._joined = [numbers for (_, alone), numbers in modules.items() if alone < 0]
        for numbers in modules.values():
            stuck = [n for n in numbers if frozen[components[trace.splits[n].labels]].all()]
            changed = [n for n in numbers if n in heads]
            if not changed:
                if stuck and self._settled.isdisjoint(numbers):
                    heads.update(dict.fromkeys(numbers, 1))
            elif any(n in heads and heads[n] + 1 >= trace.splits[n].depth for n in stuck):
                self._settled.update(changed)
                for number in changed:
                    del heads[number]
            else:
                heads.update({n: heads[n] + 1 for n in stuck if n in heads})
        return heads

    def with_stubborn(self, heads: Mapping[int, int], stubborn: frozenset[int]) -> dict[int, int]:
        """Returns the splits that lose whole heads once a cut copy has failed.

        Args:
            heads: the splits that lose whole heads in the last trace.
            stubborn: splits that a cut copy showed to be unable to lose the same index from every head.
        """
        more = dict(heads)
        for numbers in self._joined:
            left = [number for number in numbers if number not in heads]
            if stubborn.intersection(left) and self._settled.isdisjoint(left):
                more.update(dict.fromkeys(left, 1))
        return more


def _frozen(trace: ChannelTrace, components: np.ndarray) -> np.ndarray:
    """Returns which components are frozen, (labels,) of bool."""
    held = [labels for labels, _ in trace.labels.frozen]
    frozen = np.zeros(len(components), dtype=bool)
    frozen[components[np.concatenate(held)] if held else []] = True
    return frozen
