"""Options of the criterion in a config: new keys, the keys before them, and both at once."""

import logging
from typing import Annotated

import pytest
import yaml
from detectron2.utils import logger

from sirfp.config import load_config
from sirfp.config.checks import validate
from sirfp.config.options import OLD_KEYS, criterion_options
from sirfp.criteria import CRITERIA, Criterion
from sirfp.criteria.options import Within
from sirfp.errors import InputError

SIRFP = ["SIRFP.CRITERION", "sirfp"]


def options(*opts, file=""):
    cfg = load_config(file, opts)
    cfg.freeze()
    validate(cfg)
    return criterion_options(cfg)


def wrong(*opts, file=""):
    with pytest.raises(InputError) as caught:
        options(*opts, file=file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mine():
    @CRITERIA.register("mine")
    class Mine(Criterion):
        def __init__(self, model, groups, *, seed=0, my_option: Annotated[int, Within(1)] = 1, my_scale: float = 1.0):
            super().__init__(model, groups, seed=seed)

        def scores(self):
            return {}

    yield Mine
    del CRITERIA["mine"]


@pytest.fixture
def said(caplog, monkeypatch):
    """What is logged, with nothing said by other tests before."""
    logger._LOG_COUNTER.clear()
    monkeypatch.setattr(logging.getLogger("sirfp"), "propagate", True)
    caplog.set_level(logging.INFO, "sirfp")
    return caplog


def test_of_nothing_given_the_criterion_has_its_defaults():
    assert options(*SIRFP) == options("SIRFP.CRITERION", "taylor") == {}


@pytest.mark.parametrize("key", ["SIRFP.OPTIONS.EMA", "SIRFP.OPTIONS.ema", "SIRFP.EMA"])
def test_an_option_by_each_of_its_keys(key):
    assert options(*SIRFP, key, "0.5") == {"ema": 0.5}


def test_an_option_of_the_user_s_own_criterion(mine, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("SIRFP: {CRITERION: mine, OPTIONS: {MY_OPTION: 2, my_scale: 3}}\n")
    assert options(file=file) == {"my_option": 2, "my_scale": 3.0}
    assert options("SIRFP.OPTIONS.MY_OPTION", "3", file=file) == {"my_option": 3, "my_scale": 3.0}
    assert options("SIRFP.OPTIONS.my_scale", "0.5", file=file)["my_scale"] == 0.5, "of another type than in the file"
    again = tmp_path / "again.yaml"
    again.write_text(load_config(file).dump())
    assert options(file=again) == {"my_option": 2, "my_scale": 3.0}, "a run's config.yaml is read as it was"
    assert "SIRFP.OPTIONS.MY_OPTION must be at least 1, got 0" in wrong("SIRFP.OPTIONS.MY_OPTION", "0", file=file)
    message = wrong("SIRFP.OPTIONS.MY_OPTOIN", "2", file=file)
    assert "SIRFP.OPTIONS.MY_OPTOIN: criterion 'mine' takes no option" in message and "mean my_option" in message


@pytest.mark.parametrize("key", ["OPTIONS: {ema: 0.5}", "OPTIONS: {EMA: 0.5}", "EMA: 0.5"])
def test_files_over_each_other(tmp_path, key):
    """A later value replaces an earlier one, whatever its spelling and type."""
    for name, text in (("a", key.replace("0.5", "0")), ("b", key.upper() if "{" in key else key), ("c", "STEPS: 2")):
        (tmp_path / f"{name}.yaml").write_text(f"SIRFP: {{{text}}}\n")
    files = [tmp_path / f"{name}.yaml" for name in "abc"]
    assert options(*SIRFP, file=files) == {"ema": 0.5}
    assert options(*SIRFP, f"SIRFP.{'OPTIONS.' if '{' in key else ''}EMA", "0", file=files)["ema"] == 0.0


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("SEARCH", "bogus", "must be greedy or local, got 'bogus'"),
        ("COUPLED", "bogus", "must be graph or union, got 'bogus'"),
        ("NORMALIZE", "bogus", "must be l1 or l2, got 'bogus'"),
        ("EMA", "1.0", "must lie in [0, 1), got 1.0"),
        ("EMA", "much", "must be a number, got 'much'"),
        ("EDGE_WEIGHT", "-1", "must be at least 0, got -1"),
        ("POOLED", "3", "must be true or false, got 3"),
        ("COST_EXPONENT", "-0.5", "must be at least 0"),
    ],
)
def test_a_wrong_value_is_refused_under_the_key_that_was_written(key, value, says):
    for written in (f"SIRFP.{key}", f"SIRFP.OPTIONS.{key}"):
        assert wrong(written, value).startswith(f"{written} {says}")


def test_the_two_keys_at_odds_are_refused():
    assert options(*SIRFP, "SIRFP.EMA", "0.5", "SIRFP.OPTIONS.EMA", "0.5")["ema"] == 0.5
    message = wrong("SIRFP.EMA", "0.5", "SIRFP.OPTIONS.EMA", "0.6")
    assert "SIRFP.EMA 0.5 and SIRFP.OPTIONS.EMA 0.6" in message and "remove SIRFP.EMA" in message


def test_two_spellings_in_one_file_are_refused(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("SIRFP: {OPTIONS: {EMA: 0.5, ema: 0.6}}\n")
    assert "both EMA and ema" in wrong(file=file)


def test_every_old_key_still_gives_its_option():
    taken = {"edge_weight": 0.5, "ema": 0.5, "importance_weight": 3.0, "cost_exponent": 1.0,
              "coupled": "union", "normalize": "l2", "search": "local", "importance": "dcfp"}  # fmt: skip
    for key, option in OLD_KEYS.items():
        default = CRITERIA["sirfp_joint"].options()[option].default
        value = taken.get(option, 2 if option == "stride" else default)
        value = not value if isinstance(value, bool) else value
        assert options("SIRFP.CRITERION", "sirfp_joint", f"SIRFP.{key}", repr(value))[option] == value


def test_an_option_of_another_criterion_is_left_out_but_looked_at(said):
    given = ("SIRFP.CRITERION", "magnitude", "SIRFP.OPTIONS.COST_EXPONENT", "0.125")
    assert options(*given) == {}
    assert "SIRFP.OPTIONS.COST_EXPONENT: not used, because criterion magnitude has no such option" in said.text
    assert "must be at least 0" in wrong(*given[:-1], "-1")
    assert "takes no option 'cost_exp'" in wrong(*given[:2], "SIRFP.OPTIONS.COST_EXP", "1")


def test_the_log_names_the_new_key_once(said):
    for _ in range(2):
        options("SIRFP.SEARCH", "local", "SIRFP.COUPLED", "union")
    new = "SIRFP.OPTIONS.COUPLED, SIRFP.OPTIONS.SEARCH"
    assert said.messages == [f"SIRFP.COUPLED, SIRFP.SEARCH: the key is now {new}; the old key is still read"]


def test_a_config_from_before_is_read(tmp_path):
    """As a run's config.yaml had every old key with its value."""
    before = {"EMA": 0.9, "ACCUMULATE_STRIDE": 3, "COUPLED": "graph", "IMPORTANCE": "taylor", "COST_EXPONENT": 0.5}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"SIRFP": {"CRITERION": "sirfp", **before}}))
    assert options(file=tmp_path / "config.yaml") == {"ema": 0.9, "stride": 3, "coupled": "graph"}
