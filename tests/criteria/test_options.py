"""Options of criteria: default, check and meaning are read off the constructor, for criteria of the user's too."""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import pytest
from small_networks import OneLayer

from sirfp.criteria import CRITERIA, Criterion
from sirfp.criteria.options import Within
from sirfp.criteria.registry import described
from sirfp.errors import InputError


class Mine(Criterion):
    """A criterion of the user's.

    Args:
        model: the model.
        power: the exponent,
            of a norm.
        side: which side: in or out.
    """

    name = "mine"

    def __init__(
        self,
        model,
        groups,
        *,
        seed=0,
        power: Annotated[float, Within(0, 4, "(]")] = 2.0,
        side: Literal["in", "out"] = "in",
        count=3,
        names: tuple[str, ...] = (),
        flag: bool = False,
        free=None,
    ):
        super().__init__(model, groups, seed=seed)
        self.power = power


class Below(Mine):
    """One that passes on what it does not know.

    Args:
        more: its own.
    """

    def __init__(self, model, groups, *, seed=0, more: int = 1, **options):
        super().__init__(model, groups, seed=seed, **options)


def test_an_option_is_what_the_constructor_says():
    options = Mine.options()
    assert list(options) == ["power", "side", "count", "names", "flag", "free"]
    power = options["power"]
    assert (power.default, power.kind) == (2.0, float)
    assert power.values == "a number in (0, 4]" and power.meaning == "the exponent, of a norm."
    assert options["side"].values == "in or out" and options["side"].meaning == "which side: in or out."
    assert options["count"].values == "a whole number"
    assert options["free"].values == "any" and not options["free"].meaning
    assert list(Below.options()) == ["more", *options] and Below.options()["power"] == power
    assert Mine.defaults() == {"power": 2.0, "side": "in", "count": 3, "names": (), "flag": False, "free": None}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"power": 3}, 3.0),
        ({"names": ["a", "b"]}, ("a", "b")),
        ({"names": "a"}, ("a",)),
        ({"side": "out"}, "out"),
        ({"free": [1]}, [1]),
        ({"flag": True}, True),
    ],
)
def test_values_are_made_what_the_constructor_takes(given, taken):
    (value,) = Mine.check_options(given).values()
    assert value == taken and type(value) is type(taken)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"power": 0}, "KEY must lie in (0, 4], got 0"),
        ({"power": float("nan")}, "KEY must be finite"),
        ({"power": True}, "KEY must be a number, got True"),
        ({"power": "much"}, "KEY must be a number, got 'much'"),
        ({"side": "inn"}, "KEY must be in or out, got 'inn' (did you mean in"),
        ({"count": 2.5}, "KEY must be a whole number, got 2.5"),
        ({"flag": 1}, "KEY must be true or false, got 1"),
        ({"names": 3}, "KEY must be a list, got 3"),
        ({"powr": 3}, "KEY: criterion 'mine' takes no option 'powr'; it takes power, side, count"),
    ],
)
def test_a_wrong_value_is_said_under_the_user_s_name_of_it(given, says):
    with pytest.raises(InputError) as caught:
        Mine.check_options(given, {next(iter(given)): "KEY"})
    assert says in str(caught.value)
    with pytest.raises((InputError, TypeError)):
        Mine(OneLayer([[1.0]]), [], **given)


def test_the_constructor_checks_before_it_runs():
    with pytest.raises(InputError, match="power must lie in"):
        Below(OneLayer([[1.0]]), [], power=5.0)
    criterion = Below(OneLayer([[1.0]]), [], power=4.0)
    assert copy.deepcopy(criterion).power == 4.0


def test_a_criterion_may_add_a_check_of_its_own():
    class Careful(Mine):
        @classmethod
        def check_options(cls, options, called=None):
            found = super().check_options(options, called)
            if found.get("side") == "out" and found.get("power", 2.0) > 3:
                raise InputError("power beyond 3 needs side in")
            return found

    with pytest.raises(InputError, match="needs side in"):
        Careful(OneLayer([[1.0]]), [], side="out", power=4.0)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("power", "1.5", 1.5), ("count", "4", 4), ("flag", "yes", True), ("names", "a,b", ("a", "b")), ("free", "x", "x")],
)
def test_words_of_a_command_line_are_read(name, text, value):
    assert Mine.options()[name].from_text(text) == value


def test_every_option_of_ours_says_what_it_means_and_has_a_default_that_passes():
    for criterion in CRITERIA.values():
        for name, option in criterion.options().items():
            assert option.meaning and option.kind or option.choices, f"{criterion.name}'s {name}"
            assert option.checked(option.default) == option.default
    assert ("ema", "dcfp, sirfp, sirfp_joint", "0.99", "a number in [0, 1)") in [row[:4] for row in described()]
