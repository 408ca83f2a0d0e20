"""Keeps measured losses in a file, so that an interrupted measurement goes on with the groups that are not finished.

Losses are found again by fingerprints of all that they depend on (`sirfp.network.fingerprint`): those of another state
of the network, of other images or of another order of channels are never used.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.whole import whole_file

FORMAT = "sirfp loss curves 1"
"""What such a file begins with. The number changes if the same state would now be measured otherwise."""
STATES = 16
"""Number of states of a network that a file keeps; the oldest is dropped first."""


class CurveStore:
    """Losses of groups, in a JSON file that is written as a whole after each group.

    Args:
        path: the file; created by the first `put`.

    Raises:
        InputError: the file exists and is not one of this class.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._states: dict[str, dict[str, list[float | None]]] = self._read()

    def get(self, state: str, group: str, count: int) -> list[float] | None:
        """Returns the losses that were measured for a group, or None.

        Args:
            state: fingerprint of the network, its inputs and outputs.
            group: fingerprint of the group, its order and its widths.
            count: the number of widths.
        """
        losses = self._states.get(state, {}).get(group)
        if losses is None or len(losses) != count:
            return None
        return [math.nan if loss is None else loss for loss in losses]

    def put(self, state: str, group: str, losses: Sequence[float]) -> None:
        """Adds the losses of a group and writes the file.

        Raises:
            InputError: the file cannot be written.
        """
        entry = self._states.pop(state, {})
        self._states[state] = {**entry, group: [loss if math.isfinite(loss) else None for loss in losses]}
        for old in list(self._states)[:-STATES]:
            del self._states[old]
        with whole_file(self.path) as beside:
            beside.write_text(json.dumps({"format": FORMAT, "states": self._states}))

    def _read(self) -> dict[str, dict[str, list[float | None]]]:
        try:
            data = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            data = None
        if not isinstance(data, dict) or data.get("format") != FORMAT or not _valid(data.get("states")):
            raise InputError(
                f"{self.path} holds no measured losses of this version of sirfp: name another file, or remove it"
            )
        return data["states"]


def _valid(states: Any) -> bool:
    if not isinstance(states, dict) or not all(isinstance(groups, dict) for groups in states.values()):
        return False
    every = [losses for groups in states.values() for losses in groups.values()]
    return all(isinstance(losses, list) and all(map(_loss, losses)) for losses in every)


def _loss(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
