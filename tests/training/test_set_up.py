"""Where a run's log goes: to its own folder and the console, not to those of an earlier run of the process."""

import argparse
import io
import logging

import pytest
import tiny_run

from sirfp import engine
from sirfp.errors import InputError
from sirfp.training.set_up import set_up


def run(folder, line):
    set_up(tiny_run.config(folder), argparse.Namespace(eval_only=True))
    logging.getLogger("sirfp.engine").info(line)


@pytest.mark.parametrize("second", ["b", "a"])
def test_each_run_has_its_own_log(tmp_path, capsys, second):
    run(tmp_path / "a", "first run")
    run(tmp_path / second, "second run")
    first, log = (tmp_path / "a" / "log.txt").read_text(), (tmp_path / second / "log.txt").read_text()
    assert first.count("first run") == 1 and log.count("second run") == 1
    assert ("second run" in first) == (second == "a")
    assert capsys.readouterr().out.count("second run") == 1


def test_a_network_that_cannot_be_built_is_told_in_one_line(tmp_path, capsys):
    """The traceback, which shows a mistake in one's own code, is in log.txt."""
    cfg = tiny_run.config(tmp_path)
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = "MyBackbone"
    set_up(cfg, argparse.Namespace(eval_only=True))
    with pytest.raises(InputError, match="No object named 'MyBackbone' .*; --import FILE.py runs the code that regist"):
        engine.Trainer.build_model(cfg)
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err and "Traceback" in (tmp_path / "log.txt").read_text()


def test_handlers_of_others_stay(tmp_path):
    told = io.StringIO()
    own = logging.StreamHandler(told)
    logging.getLogger("sirfp").addHandler(own)
    run(tmp_path / "a", "first run")
    run(tmp_path / "b", "second run")
    assert own in logging.getLogger("sirfp").handlers
    assert "first run" in told.getvalue() and "second run" in told.getvalue()
