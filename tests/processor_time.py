"""A plugin of pytest: the processor seconds of tests by folder and of the longest ones, with the programs they start.

    PYTHONPATH=tests .venv/bin/python -m pytest tests/hooks -m "not slow" -p processor_time

Seconds on a clock say little on a machine that does other work, and nothing about what two processes share. It counts
in one process, without `-n`. A fixture counts for the first test that asks for it.
"""

from __future__ import annotations

import resource
import time
from collections import Counter

import pytest

LONGEST = 20
seconds: Counter[str] = Counter()


def now() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def folder(test: str) -> str:
    """The folder below `tests` in which a test lies."""
    return "/".join(test.partition("::")[0].split("/")[:-1][:2])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Measures a test with its fixtures."""
    start = now()
    try:
        return (yield)
    finally:
        seconds[item.nodeid] += now() - start


def pytest_terminal_summary(terminalreporter):
    """Prints both tables."""
    folders: Counter[str] = Counter()
    for test, spent in seconds.items():
        folders[folder(test)] += spent
    for title, counted in (("folders", folders.most_common()), ("longest tests", seconds.most_common(LONGEST))):
        terminalreporter.section(f"processor seconds: {title}")
        for name, spent in counted:
            terminalreporter.line(f"{spent:8.2f}  {name}")
    terminalreporter.line(f"{sum(seconds.values()):8.2f}  all tests; {now():.2f} with imports")
