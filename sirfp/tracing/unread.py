"""Which channels and rows the example inputs do not reach, such as the positions of longer inputs.

Code takes the first rows of a table that is long enough for any input, or the first outputs of a layer that has one for
each position. What the example inputs leave out changes no output, so no comparison shows whether it is still there. It
must stay, since other inputs read it.

Channels are read where an operation sums over them. Operations on single values pass them on: their results may still
be left out. Channels that meet a fixed size stay whole anyway.
"""

from __future__ import annotations

import numpy as np

from .channel_labels import Array, Labels

_SPLITS = [f"{before}{name}" for before in ("", "unsafe_") for name in ("split", "split_with_sizes", "chunk")]
PARTS = frozenset(f"aten::{name}{after}" for name in ["slice", *_SPLITS] for after in ("", "_copy"))
"""Operations that take parts of a dimension and read nothing."""


class UnreadParts:
    """Notes the dimensions of which the code takes parts, and the labels that operations read."""

    def __init__(self) -> None:
        self._parted: list[Array] = []
        self._read: list[tuple[list[Array], list[Array]]] = []  # labels of inputs, labels of outputs

    def note_part(self, labels: Array | None) -> None:
        """Notes that an operation takes a part of a dimension, or splits it into parts."""
        if labels is not None:
            self._parted.append(labels)

    def note_operation(self, name: str, inputs: list[Array], outputs: list[Array]) -> None:
        """Notes which labels an operation reads: those that it does not pass on.

        Args:
            name: its name.
            inputs: the labels of all dimensions of its inputs.
            outputs: those of its outputs.
        """
        if name in PARTS:
            return
        passed = {id(labels) for labels in outputs}
        read = [labels for labels in inputs if id(labels) not in passed]
        if read:
            self._read.append((read, outputs))

    def freeze(self, labels: Labels) -> None:
        """Freezes the channels of these dimensions that no operation reads."""
        if not self._parted:
            return
        atoms = labels.components()
        parted = np.concatenate(self._parted)
        unread = np.zeros(labels.count, dtype=bool)
        unread[atoms[parted]] = True
        for before, after in self._read:
            read = atoms[np.concatenate(before)]
            read = read[unread[read]]
            if len(read):
                passed = atoms[np.concatenate(after)] if after else []
                unread[np.setdiff1d(read, passed)] = False
        labels.freeze(parted[unread[atoms[parted]]], "the example inputs do not reach it, other inputs may")
