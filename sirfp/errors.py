"""The exception for wrong user input (exit code 2 on the command line), and functions for the text of messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """The user's input is wrong: a file, a folder, a config value.

    The message is one line. It names the input, and says what is wrong with the input and what to do.
    """


def one_line(error: BaseException, most: int | None = None) -> str:
    """Returns an error's text as one line, cut off after `most` characters."""
    return " ".join(str(error).split())[:most]


def first_line(error: BaseException) -> str:
    """Returns an error's class and the first line of its text, cut off after 160 characters."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:160]}"


def near(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean X or Y?)" with the known names most similar to `name`, or "" if none is similar."""
    return suggested(difflib.get_close_matches(str(name), [str(k) for k in known], n=3))


def suggested(names: Sequence[str]) -> str:
    """Returns " (did you mean X or Y?)", or "" without names; a message may go on after it with "; ..."."""
    return f" (did you mean {' or '.join(names)}?)" if names else ""
