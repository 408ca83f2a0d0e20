"""Says why nothing in a model can be cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..errors import InputError
from ..structure.groups import MODEL_OUTPUT, ChannelGroups, Frozen

REASONS = 3
"""Number of reasons that a message names."""


def check_groups(found: ChannelGroups) -> None:
    """Raises InputError, with the most frequent reasons and what to do, if nothing in the model can be cut."""
    if not found.groups:
        raise InputError(f"nothing in the model can be cut: {why_frozen(found.frozen)}")


def why_frozen(frozen: Iterable[Frozen]) -> str:
    """Says in one line why channels are frozen: the reasons with the most channels first, and what to do.

    The reason that every model has, that a layer makes its output, is named last.
    """
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for one in frozen:
        counts[one.reason] += one.channels
        example.setdefault(one.reason, one.name)
    if not counts:
        return "the example inputs reach no layer that makes channels; check that the model calls its layers"
    order = sorted(counts.items(), key=lambda item: (item[0] == MODEL_OUTPUT, -item[1]))
    texts = [f"{reason} ({count} channels, e.g. of {example[reason]!r})" for reason, count in order[:REASONS]]
    rest = len(order) - len(texts)
    more = f"; {rest} more reason{'s' * (rest > 1)}" if rest else ""
    return (
        f"every channel is frozen, for these reasons: {'; '.join(texts)}{more}; change what they name, or prune the "
        "part of the model without it (docs/groups.md)"
    )
