"""Long commands say on standard error what they do; short ones, and those that print JSON, say nothing."""

from __future__ import annotations

import re
import time

import pytest

from sirfp import cli
from sirfp.commands.outcome import Outcome
from sirfp.reporting import progress
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


def test_a_file_has_one_line_with_the_time_that_is_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with stages_on_stderr(5):
        for _ in with_progress(range(100), "measuring", 100):
            clock[0] += 2
        for _ in with_progress(range(3), "comparing", 3):  # too short for a second line
            clock[0] += 2
    assert told(capsys) == ["measuring: 3 of 100, about 3:14 left", "comparing"]


def test_a_stage_begins_with_its_first_item(capsys):
    with stages_on_stderr(0):
        images = with_progress(iter("ab"), "looking", 2)
        stage("finding groups")
        next(images)
    assert told(capsys) == ["finding groups", "looking"]


def test_a_log_has_the_time_that_is_left(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with caplog.at_level("INFO", "sirfp"):
        for _ in with_progress(range(10), "measuring loss curves", 10):
            clock[0] += 60
    assert [record.message for record in caplog.records] == ["Measuring loss curves: 1 of 10, about 9:00 left"]


def test_a_bar_ends_before_the_next_begins(monkeypatch, capsys):
    """A generator that is not run to its end, as for the first of many batches, leaves no bar on the terminal."""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    first = with_progress(iter("abc"), "looking", 3)
    next(first)
    (bar,) = progress._bars
    assert bar.live.is_started
    list(with_progress(iter("ab"), "measuring", 2))
    assert not bar.live.is_started and not progress._bars
    assert list(first) == ["b", "c"]


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
