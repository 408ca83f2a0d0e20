"""sirfp works with networks of timm where Detectron2, and what only it needs, is not installed."""

import configparser
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import without_detectron2
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sirfp.errors import InputError
from sirfp.network.detectron import check_detectron2

ROOT = Path(__file__).resolve().parents[1]


def test_every_command_works_and_what_needs_detectron2_says_so(tmp_path):
    program = [sys.executable, without_detectron2.__file__, str(tmp_path), "--hide"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(program, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_hidden_is_what_only_the_extra_asks_for():
    """Otherwise the test above would pass with a package that `pip install .` does not install."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = {Requirement(line).name for line in setup["options.extras_require"]["detectron2"].split("\n") if line}
    modules = importlib.metadata.packages_distributions()
    hidden = {canonicalize_name(name) for module in without_detectron2.HIDDEN[1:] for name in modules.get(module, [])}
    assert hidden and hidden <= extra
    core = setup["options"]["install_requires"]
    assert not {Requirement(line).name for line in core.split("\n") if line and line[0] != "#"} & extra


@pytest.mark.parametrize(
    ("lacks", "told"),
    [("detectron2", "which is not installed"), ("omegaconf", "which lacks the package 'omegaconf'")],
)
def test_a_package_that_detectron2_needs_is_named(lacks, told, monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {lacks!r}", name=lacks)

    monkeypatch.setattr("sirfp.network.detectron.importlib.import_module", fail)
    with pytest.raises(InputError, match=f"^a config needs Detectron2, {told}: install it by"):
        check_detectron2("a config")
