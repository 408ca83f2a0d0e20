"""A run that crashes in compiled code says where it was."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sirfp.training import launch

CODE = """
import faulthandler, os, signal
from sirfp.training import launch

def crash(args):
    os.kill(os.getpid(), signal.SIGSEGV)

if __name__ == "__main__":
    assert not faulthandler.is_enabled()
    args = launch.argument_parser().parse_args(["--num-processes", "{}"])
    launch.resolve_devices(args)
    launch.start(crash, args)
"""


def crash(args):
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_crash_names_its_place(tmp_path):
    """In a forked process, which need not import anything; the programs below take seconds to."""
    said = tmp_path / "said.txt"
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()  # pytest's own
            sys.stderr = said.open("w")
            args = launch.argument_parser().parse_args(["--num-processes", "1"])
            launch.resolve_devices(args)
            launch.start(crash, args)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in said.read_text() and "in crash" in said.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_program_that_crashes_names_its_place(tmp_path, processes):
    script = tmp_path / "crashing.py"
    script.write_text(CODE.replace("{}", str(processes)))
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    environment.pop("PYTHONFAULTHANDLER", None)
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240, env=environment)
    assert ended.returncode == (-signal.SIGSEGV if processes == 1 else 1), ended.stderr
    assert "Fatal Python error: Segmentation fault" in ended.stderr and "in crash" in ended.stderr
