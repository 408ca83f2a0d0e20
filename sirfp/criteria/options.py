"""Options of criteria, read from their constructors, which alone define each option's default, check and meaning.

An option is a keyword-only parameter of a criterion's constructor:

- the default is the parameter's default;
- the type is that of the annotation, or of the default if there is no annotation;
- the check, such as `Within`, is part of the annotation;
- the meaning is the parameter's entry in the docstring.

For example:

    class Mine(Criterion):
        '''The norm of a filter.

        Args:
            power: exponent of the norm.
            side: the side of the layer whose weights are used.
        '''

        def __init__(self, model, groups, *, seed=0, power: Annotated[float, Within(0)] = 2.0,
                     side: Literal["in", "out"] = "in"):

`Criterion.check_options`, the command line's help and the table in docs/criteria.md are generated from the
constructors.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ..errors import InputError, near

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
"""{type: its name in messages}."""
TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
"""{text on a command line: its truth value}."""


@dataclass(frozen=True)
class Within:
    """An interval for an option's value; part of its annotation.

    Attributes:
        low, high: the ends.
        ends: "[]", "(]", "[)" or "()"; a square bracket means that this end belongs to the interval.
    """

    low: float
    high: float = math.inf
    ends: str = "[]"

    def check(self, value: float, called: str) -> None:
        """Raises InputError unless a value is in the interval; `called` is the option's name in the message."""
        above = value > self.low or (value == self.low and self.ends[0] == "[")
        below = value < self.high or (value == self.high and self.ends[1] == "]")
        if not (above and below):
            closed = self.ends[0] == "["
            ends = f"lie {self}" if self.high < math.inf else f"be {'at least' if closed else 'above'} {self.low}"
            raise InputError(f"{called} must {ends}, got {value}")

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'>=' if self.ends[0] == '[' else '>'} {self.low}"
        return f"in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}"


@dataclass(frozen=True)
class Option:
    """An option of a criterion.

    Attributes:
        name: the parameter's name, in lower case.
        default: the default value.
        kind: bool, int, float, str, tuple or list; None allows any value.
        choices: the allowed values; () allows all values of the kind.
        within: the interval of allowed numbers; None allows all.
        meaning: the parameter's entry in the docstring; "" if there is none.
    """

    name: str
    default: Any
    kind: type | None
    choices: tuple[Any, ...]
    within: Within | None
    meaning: str

    def checked(self, value: Any, called: str = "") -> Any:
        """Checks a value and converts it to the option's kind, e.g. an int to a float or a list to a tuple.

        Args:
            value: the value as the user gave it.
            called: the option's name in messages, e.g. "SIRFP.OPTIONS.EMA"; `name` by default.

        Raises:
            InputError: the value is of another type, outside the interval or none of the choices.
        """
        called = called or self.name
        if self.choices:
            if value not in self.choices or isinstance(value, bool):
                raise InputError(f"{called} must be {self._listed()}, got {value!r}{near(str(value), self.choices)}")
            return value
        if self.kind in (tuple, list):
            several = (value,) if isinstance(value, str) else value
            if not isinstance(several, (tuple, list)):
                raise InputError(f"{called} must be a list, got {value!r}")
            return self.kind(several)
        if self.kind is None:
            return value
        number = isinstance(value, (int, float) if self.kind is float else int) and not isinstance(value, bool)
        fits = number if self.kind in (int, float) else isinstance(value, self.kind)
        if not fits:
            raise InputError(f"{called} must be {KINDS[self.kind]}, got {value!r}")
        if self.kind is float and not math.isfinite(value):
            raise InputError(f"{called} must be finite, got {value}")
        if self.within is not None:
            self.within.check(value, called)
        return self.kind(value)

    def from_text(self, text: str, called: str = "") -> Any:
        """Converts a word of a command line to a value and checks it. Commas separate the items of a list.

        Raises:
            InputError: see `checked`.
        """
        value: Any = text
        if self.kind is bool:
            value = TRUTHS.get(text.lower(), text)
        elif self.kind in (tuple, list):
            value = tuple(part for part in text.split(",") if part)
        elif self.kind in (int, float):
            try:
                value = self.kind(text)
            except ValueError:
                value = text
        return self.checked(value, called)

    @property
    def values(self) -> str:
        """The allowed values in words, e.g. "a number in [0, 1)"."""
        if self.choices:
            return self._listed()
        if self.kind is None:
            return "any"
        kind = KINDS.get(self.kind, "a list")
        return f"{kind} {self.within}" if self.within else kind

    def _listed(self) -> str:
        return f"{', '.join(map(str, self.choices[:-1]))} or {self.choices[-1]}"


@functools.cache
def options_of(cls: Any) -> dict[str, Option]:
    """Returns the options of a class's constructor by name, {name: option}.

    If the constructor takes `**options`, the options of the base class are added.
    """
    if "__init__" not in vars(cls) and cls.__base__ is not None:
        return options_of(cls.__base__)
    signature = inspect.signature(cls.__init__).parameters.values()
    hints, meanings = _hints(cls), _meanings(cls)
    own = {p.name: _option(p, hints, meanings) for p in signature if p.kind is p.KEYWORD_ONLY and p.name != "seed"}
    if cls.__base__ is None or not any(p.kind is p.VAR_KEYWORD for p in signature):
        return own
    return own | {name: option for name, option in options_of(cls.__base__).items() if name not in own}


def _option(parameter: inspect.Parameter, hints: dict[str, Any], meanings: dict[str, str]) -> Option:
    hint, default = hints.get(parameter.name), parameter.default
    extras: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        extras = tuple(rest)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    named = get_origin(hint) or hint
    kinds = (*KINDS, tuple, list)
    kind = next((k for k in (named, type(default)) if k in kinds), None) if hint is None or named in kinds else None
    return Option(
        parameter.name,
        default,
        kind,
        choices,
        next((extra for extra in extras if isinstance(extra, Within)), None),
        meanings.get(parameter.name, ""),
    )


def _hints(cls: Any) -> dict[str, Any]:
    """Returns the constructor's annotations; {} if one names a type that is imported for type checkers only."""
    try:
        return get_type_hints(cls.__init__, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def _meanings(cls: Any) -> dict[str, str]:
    """Returns the entries of `Args:` in the docstrings of a class and its constructor, {parameter: text on a line}."""
    found: dict[str, str] = {}
    for owner in (cls.__init__, cls):
        block = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", inspect.cleandoc(owner.__doc__ or ""), re.MULTILINE)
        for line in re.split(r"\n(?=    \S)", f"\n{block[1]}" if block else "")[1:]:
            names, _, text = line.partition(":")
            found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found
