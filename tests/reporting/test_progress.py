"""Long commands say on standard error what they do; short ones, and those that print JSON, say nothing."""

from __future__ import annotations

import re
import time

import pytest

from sirfp import cli
from sirfp.commands.outcome import Outcome
from sirfp.reporting.progress import stage, stages_on_stderr, with_progress


def told(capsys) -> list[str]:
    """The stages on standard error, without their times."""
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\[\d+ s\] ", line) for line in lines)
    return [line.partition("] ")[2] for line in lines]


def test_nothing_is_said_within_the_patience(capsys):
    with stages_on_stderr(60):
        stage("reading")
        stage("counting")
    stage("outside")
    assert capsys.readouterr().err == ""


def test_a_stage_that_lasts_is_said_and_so_are_those_after_it(capsys):
    with stages_on_stderr(0.2):
        stage("building the model")
        stage("finding groups")
        time.sleep(1)
        stage("cutting")
    assert told(capsys) == ["finding groups", "cutting"]


def test_a_bar_is_a_line_in_a_file(capsys):
    with stages_on_stderr(0):
        assert list(with_progress(iter("ab"), "comparing", 2)) == ["a", "b"]
    assert told(capsys) == ["comparing"]


def test_no_stage_is_said_after_the_end(capsys):
    with stages_on_stderr(2):
        stage("short")
    time.sleep(2.2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("words", "said"), [((), True), (("--json",), False)])
def test_commands_say_their_stages_unless_they_print_json(monkeypatch, capsys, words, said):
    def run(args):
        stage("working")
        return Outcome({}, [])

    monkeypatch.setattr("sirfp.commands.report.run", run)
    monkeypatch.setenv("SIRFP_PATIENCE", "0")
    assert cli.main(["report", "--timm", "test_resnet", *words]) == 0
    assert ("working" in capsys.readouterr().err) is said
