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
_GROUP_OF_PROCESS = Path("/proc/self/cgroup")
_CONTROL_GROUPS = {
    "": (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    "memory": (
        Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
    ),
}  # fmt: skip
"""For control groups of version 2, which have no named controller, and 1: the root folder, the files of the limit and
of the bytes in use, and the name in `memory.stat` of those bytes in use that are pages of files and can be dropped."""
_active: list[Callable[[int, int], int]] = []
"""glibc's function, once for each `kept_memory` that is active."""


@contextmanager
def kept_memory(model: nn.Module) -> Iterator[None]:
    """While active, memory that is freed stays in the process; afterwards what is free goes back to the kernel.

    Without effect for a model on a GPU, with other allocators than glibc's, with a glibc that refuses thresholds of
    more than 32 MiB (older versions), and where the environment sets glibc's thresholds (`MALLOC_MMAP_THRESHOLD_`,
    `MALLOC_TRIM_THRESHOLD_`, `GLIBC_TUNABLES`).
    """
    set_option = _mallopt() if all(parameter.device.type == "cpu" for parameter in model.parameters()) else None
    # The second threshold only if the first is accepted: glibc would no longer adapt the first one to what is freed.
    if set_option is None or not (_active or set_option(_MMAP_THRESHOLD, _LARGEST)):
        yield
        return
    if not _active:
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
    """Returns the share of memory that is free: of the machine, or of a control group of the process if less of its is.

    Pages of files that were read and are not in use count as free: the kernel drops them where memory is needed.
    """
    shares = [1.0]
    with suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        total, free = (int(lines[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        shares.append(free / total)
    for folder, limit, used, cached in _control_groups():
        with suppress(OSError, ValueError, KeyError):  # "max": no limit
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            taken = int((folder / used).read_text()) - int(counts[cached])
            shares.append(1 - taken / int((folder / limit).read_text()))
    return min(shares)


def _control_groups() -> Iterator[tuple[Path, str, str, str]]:
    """Yields what `_CONTROL_GROUPS` has, for the control group of this process and each that contains it.

    A container sees its own group as the root; the jobs of a cluster's scheduler are in groups below the root.
    """
    with suppress(OSError, ValueError):
        for line in _GROUP_OF_PROCESS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                if controller in _CONTROL_GROUPS:
                    root, limit, used, cached = _CONTROL_GROUPS[controller]
                    inside = Path(path.lstrip("/"))
                    for each in (inside, *inside.parents):
                        yield root / each, limit, used, cached
