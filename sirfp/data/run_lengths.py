"""Checks run-length encoded masks of COCO: pycocotools fills a mask whose runs end early with what lies in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

FIRST, LAST = 48, 111
"""Codes of the characters of a compressed mask: "0" and 63 more."""
LONGEST = 12
"""Largest number of pieces of a run: numbers of 60 bits."""


def covers(counts: Any, pixels: int) -> bool:
    """True if the runs of a mask are whole numbers that cover its pixels exactly.

    Args:
        counts: the lengths of the runs, as a list or in COCO's compressed text.
        pixels: height times width of the mask.
    """
    if isinstance(counts, str):
        try:
            counts = run_lengths(counts)
        except ValueError:
            return False
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        return False
    return sum(counts) == pixels


def run_lengths(text: str) -> list[int]:
    """Decodes COCO's compressed text (`rleFrString` of its C code).

    A run is written in pieces of five bits, the lowest first; a sixth bit says that another piece follows. From the
    fourth run on, the difference from the run before the last one is written, whose sign is that of the last piece.

    Raises:
        ValueError: the text is empty or ends within a run, or has another character.
    """
    try:
        codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - FIRST
    except UnicodeEncodeError:
        raise ValueError("a compressed mask has characters of ASCII only") from None
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(codes) or ends[-1:].tolist() != [len(codes) - 1] or codes.min() < 0 or codes.max() > LAST - FIRST:
        raise ValueError("the text ends within a run, or has a character that no compressed mask has")
    starts = np.append(0, ends[:-1] + 1)
    pieces = ends - starts + 1
    if pieces.max() > LONGEST:
        raise ValueError("a run is longer than any image")
    places = 5 * (np.arange(len(codes)) - np.repeat(starts, pieces))
    runs = np.add.reduceat((codes & 31) << places, starts) - np.where(codes[ends] & 16, 1 << 5 * pieces, 0)
    for first in (1, 2):
        runs[first::2] = runs[first::2].cumsum()
    return runs.tolist()
