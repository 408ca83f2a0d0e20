"""Keeps the memory of large feature maps in the process, so that each pass uses that of the pass before.

The allocator of glibc gives a block of more than 32 MiB back to the kernel as soon as it is freed. The next block of
this size consists of new pages, which the kernel clears one by one: a seventh of the time of a forward pass of
DeepLabV3+ on eight images of 240 x 320, more in training. The price is memory: where images have many different sizes,
what one pass leaves does not fit the next one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import nn

FREE = 0.25
"""`give_back_if_scarce` gives memory back where a smaller share of the machine's memory is free."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MIB = 2**20
_LARGEST = 1024 * _MIB
_USUAL = 32 * _MIB
"""The largest value that glibc itself gives the second threshold; it gives the first one twice this value."""
_active: list[Callable[[int, int], int]] = []
"""glibc's function, once for each `kept_memory` that is active."""


@contextmanager
def kept_memory(model: nn.Module) -> Iterator[None]:
    """While active, memory that is freed stays in the process; afterwards what is free goes back to the kernel.

    Without effect for a model on a GPU, with other allocators than glibc's, and where the environment sets glibc's
    thresholds (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`).
    """
    set_option = _mallopt() if all(parameter.device.type == "cpu" for parameter in model.parameters()) else None
    if set_option is None:
        yield
        return
    if not _active:
        set_option(_MMAP_THRESHOLD, _LARGEST)
        set_option(_TRIM_THRESHOLD, _LARGEST)
    _active.append(set_option)
    try:
        yield
    finally:
        _active.pop()
        if not _active:
            _give_back(set_option)


def give_back_if_scarce() -> None:
    """Ends the effect of `kept_memory`, and gives back what is free, if the machine or container is short of memory.

    Call it between steps: it takes a fraction of a millisecond.
    """
    if _active and _free_share() < FREE:
        _give_back(_active[-1])


def _give_back(set_option: Callable[[int, int], int]) -> None:
    set_option(_MMAP_THRESHOLD, _USUAL)
    set_option(_TRIM_THRESHOLD, 2 * _USUAL)
    ctypes.CDLL(None).malloc_trim(0)


def _mallopt() -> Callable[[int, int], int] | None:
    """Returns glibc's function that sets its thresholds; None if there is none, or if the environment sets them."""
    given = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
    if not sys.platform.startswith("linux") or any(name in os.environ for name in given):
        return None
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)


def _free_share() -> float:
    """Returns the share of memory that is free: of the machine, or of the container if less of its is."""
    shares = [1.0]
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        shares.append(free / total)
    folder = Path("/sys/fs/cgroup")
    for limit, used in (
        (folder / "memory.max", folder / "memory.current"),
        (folder / "memory" / "memory.limit_in_bytes", folder / "memory" / "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # "max": no limit
            shares.append(1 - int(used.read_text()) / int(limit.read_text()))
    return min(shares)
