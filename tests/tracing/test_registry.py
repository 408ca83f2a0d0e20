"""Registries: names, duplicates with their owner, unknown names with the nearest."""

import fvcore.common.registry
import pytest

from sirfp.criteria import CRITERIA, Criterion
from sirfp.criteria.registry import register
from sirfp.errors import InputError
from sirfp.hooks import HOOKS
from sirfp.tracing import RULES
from sirfp.tracing.registry import Registry
from sirfp.tracing.table import rule


@pytest.fixture
def things():
    found: Registry[type] = Registry("thing")

    @found.register()
    class First: ...

    @found.register("other")
    class Second: ...

    return found


def test_three_ways_to_register(things):
    class Third: ...

    assert things.register(Third) is Third
    assert list(things.keys()) == ["First", "other", "Third"] and len(things) == 3
    assert [name for name, _ in things] == list(things.keys()), "iterating gives pairs, as of fvcore's"
    assert things["other"].__name__ == "Second" and things.get("none", None) is None


def test_a_second_of_a_name_is_told_of_the_first(things):
    with pytest.raises(ValueError, match=r"thing 'other' is registered already, by test_registry\..*Second"):
        things.register("other")(int)
    assert things["other"] is not int


def test_an_unknown_name_gets_the_nearest_and_the_list(things):
    with pytest.raises(
        InputError, match=r"^KEY: there is no thing 'othr'; known are First, other .did you mean other\?"
    ):
        things.find("othr", "KEY")
    with pytest.raises(InputError, match=r"known are First, other; import the file of a thing of your own first"):
        things.find("mine")
    with pytest.raises(InputError, match=r"^there is no thing"):
        things["x"]


def test_all_three_registries_are_of_one_kind():
    for registry in (CRITERIA, HOOKS, RULES):
        assert isinstance(registry, Registry) and isinstance(registry, fvcore.common.registry.Registry)
    with pytest.raises(ValueError, match=r"rule 'aten::cat' is registered already, by sirfp\.tracing\.\w+\.\w+"):
        rule("cat")(lambda *_: None)
    with pytest.raises(ValueError, match=r"hook 'Accumulate' is registered already, by sirfp\.hooks\.pruning\.Accum"):
        HOOKS.register("Accumulate")(object)


@pytest.mark.parametrize("way", [register, CRITERIA.register])
def test_a_criterion_is_registered_either_way_and_knows_its_name(way):
    try:

        @way("its_name")
        class Mine(Criterion): ...

        assert CRITERIA["its_name"] is Mine and Mine.name == "its_name" and "its_name" in sorted(CRITERIA)
    finally:
        del CRITERIA["its_name"]
    assert "its_name" not in CRITERIA
