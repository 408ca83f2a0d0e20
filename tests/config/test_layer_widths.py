"""Widths of single layers in configs: SIRFP.KEEP in files, on the command line, and in a run's own config."""

from __future__ import annotations

import pytest

from sirfp.budget.limits import Limits
from sirfp.config import load_config
from sirfp.config.checks import validate
from sirfp.errors import InputError
from sirfp.training.schedule import Schedule

HOOKS = ("SIRFP.HOOKS", "['Accumulate', 'PruneSteps']")


def keep(*opts: str, files=()) -> tuple:
    cfg = load_config([str(file) for file in files] or "", list(opts))
    validate(cfg)
    return Limits.from_config(cfg).keep


def test_files_and_the_command_line_give_widths(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("SIRFP: {KEEP: {'backbone.layer3.*': 0.5, stem: 16}, HOOKS: [Accumulate, PruneSteps]}\n")
    second.write_text("SIRFP: {KEEP: {stem: 0.25, head: 1.0}}\n")
    assert keep() == ()
    assert keep(files=[first]) == (("backbone.layer3.*", 0.5), ("stem", 16))
    assert keep(files=[first, second]) == (("backbone.layer3.*", 0.5), ("stem", 0.25), ("head", 1.0))
    assert keep("SIRFP.KEEP", "{'a.*': 0.5, b: 8}", files=[first]) == (("a.*", 0.5), ("b", 8))
    assert keep("SIRFP.KEEP", "{}", files=[first]) == ()
    one_by_one = ("SIRFP.KEEP", "{a: 8}", "SIRFP.KEEP.b.conv1", "0.5", "SIRFP.KEEP.a", "4")
    assert keep(*one_by_one, files=[first]) == (("a", 4), ("b.conv1", 0.5))


def test_a_runs_own_config_is_read_again(tmp_path):
    cfg = load_config("", ["SIRFP.KEEP", "{'backbone.layer3.*': 0.5, stem: 16}", *HOOKS])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_config(tmp_path / "config.yaml").SIRFP.KEEP == cfg.SIRFP.KEEP


@pytest.mark.parametrize(
    ("opts", "says"),
    [
        (("SIRFP.KEEP", "0.5"), "SIRFP.KEEP must map names of layers to widths"),
        (("SIRFP.KEEP.a.b", "half"), "SIRFP.KEEP.a.b must be a share such as 0.5 or a number of channels such as 64"),
        (("SIRFP.KEEP", "{a: 1.5}"), "KEEP of 'a' must be a share"),
        (("SIRFP.KEEP", "{a: 0.5}"), "SIRFP.KEEP requires pruning, but SIRFP.HOOKS lacks PruneSteps"),
        (("SIRFP.KEPE", "{a: 0.5}"), "there is no config key SIRFP.KEPE"),
    ],
)
def test_wrong_widths_are_refused(opts, says):
    with pytest.raises(InputError, match=says) as error:
        keep(*opts)
    assert "\n" not in str(error.value)


def test_widths_alone_make_a_run_prune():
    options = ["SOLVER.MAX_ITER", "9", "SIRFP.ACCUMULATE_ITERS", "3", *HOOKS]
    assert not Schedule.from_config(load_config("", options)).prunes
    assert Schedule.from_config(load_config("", [*options, "SIRFP.KEEP", "{a: 0.5}"])).prunes
    late = ["SIRFP.KEEP", "{a: 0.5}", "SIRFP.ACCUMULATE_ITERS", "20", "SOLVER.MAX_ITER", "9", *HOOKS]
    with pytest.raises(InputError, match="comes at iteration 20, after"):
        Schedule.from_config(load_config("", late))
