"""Memory of large blocks: kept while asked to, given back afterwards, and left alone where the user decides."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch
from torch import nn

from sirfp.network import kept_memory as module
from sirfp.network.kept_memory import give_back_if_scarce, kept_memory

SIZE = 64 * 2**20


class Counts(ctypes.Structure):
    """The counts of glibc's `mallinfo2`."""

    _fields_ = [(f"count{number}", ctypes.c_size_t) for number in range(10)]


@pytest.fixture(autouse=True)
def glibc(usual_memory):
    """Skips a test where the allocator is not that of glibc, or one that keeps no large blocks."""
    names = sys.platform.startswith("linux") and ctypes.CDLL(None)
    if not hasattr(names, "mallinfo2") or not names.mallopt(-3, 2**30):
        pytest.skip("the allocator does not count its blocks, or maps all large ones")
    names.mallopt(-3, 2**25)


def is_mapped(size: int = 8 * SIZE) -> bool:
    """Returns True if a large block is mapped by the kernel for this one use.

    Args:
        size: bytes; more than those of blocks that were kept before, which may still be in place.
    """
    count = ctypes.CDLL(None).mallinfo2
    count.restype = Counts
    before = count().count4  # hblkhd: bytes in blocks of their own
    block = torch.empty(size, dtype=torch.uint8)
    return count().count4 - before >= block.numel()


def resident() -> int:
    """Returns the bytes of this process that are in memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def test_large_blocks_are_kept_while_active_and_given_back_afterwards():
    assert is_mapped()
    before = resident()
    with kept_memory(nn.Linear(2, 2)):
        with kept_memory(nn.Linear(2, 2)):
            assert not is_mapped(SIZE)
            torch.ones(SIZE, dtype=torch.uint8)
        assert not is_mapped(SIZE)
        assert resident() > before + SIZE / 2, "the end of an inner one gave the memory back"
    assert resident() < before + SIZE / 2
    assert is_mapped()


@pytest.mark.parametrize(
    "given", [("MALLOC_MMAP_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1000000")]
)
def test_what_the_environment_sets_stays(given, monkeypatch):
    monkeypatch.setenv(*given)
    with kept_memory(nn.Linear(2, 2)):
        assert is_mapped()


def test_a_model_that_is_elsewhere_changes_nothing():
    with kept_memory(nn.Linear(2, 2, device="meta")):
        assert is_mapped()


def test_an_allocator_that_refuses_the_threshold_is_left_as_it_is(monkeypatch):
    """glibc refused thresholds of more than 32 MiB once; any other option ends its adaptation to what is freed."""
    asked = []
    monkeypatch.setattr(module, "_mallopt", lambda: lambda name, value: asked.append(name) or 0)
    with kept_memory(nn.Linear(2, 2)):
        give_back_if_scarce()
    assert asked == [module._MMAP_THRESHOLD]


def test_memory_is_given_back_where_it_is_scarce(monkeypatch):
    with kept_memory(nn.Linear(2, 2)):
        monkeypatch.setattr(module, "_free_share", lambda: 0.9)
        give_back_if_scarce()
        assert not is_mapped(SIZE)
        monkeypatch.setattr(module, "_free_share", lambda: 0.1)
        give_back_if_scarce()
        assert is_mapped()
    give_back_if_scarce()
    assert is_mapped()


def test_the_share_of_memory_that_is_free():
    assert 0 < module._free_share() < 1


@pytest.fixture(params=["0::", "4:cpu,memory:"], ids=["version 2", "version 1"])
def container(request, tmp_path, monkeypatch):
    """Returns a function that says how much of 100000 bytes a control group uses, beside 3000 of files."""
    controller = "memory" if "memory" in request.param else ""
    _, limit, used, cached = module._CONTROL_GROUPS[controller]
    monkeypatch.setattr(module, "_CONTROL_GROUPS", {controller: (tmp_path, limit, used, cached)})
    monkeypatch.setattr(module, "_GROUP_OF_PROCESS", tmp_path / "own")
    (tmp_path / "own").write_text(f"9:name=systemd:/\n{request.param}/jobs/7\n")

    def fill(group: str, taken: int, of: str = "100000") -> None:
        folder = tmp_path / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((limit, of), (used, taken), ("memory.stat", f"anon 5\n{cached} 3000")):
            (folder / name).write_text(f"{text}\n")

    return fill


@pytest.mark.parametrize("group", ["", "jobs", "jobs/7"])
def test_pages_of_files_count_as_free_in_a_control_group(group, container):
    container(group, 99000)
    assert module._free_share() == pytest.approx(0.04)
    container(group, 99000, "max")
    assert module._free_share() > 0.04


def test_the_control_groups_of_other_processes_do_not_count(container):
    container("jobs/8", 99000)
    container("jobs/7", 53000)
    assert module._free_share() == pytest.approx(0.5)
