"""The one exception that means "the user's input is wrong", which the command line turns into exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong: a file, a folder, a config value.

    The message is a single line which names the thing, says what is wrong with it and what to do.
    """


def one_line(error: BaseException, most: int | None = None) -> str:
    """An error's text in one line, its first `most` letters."""
    return " ".join(str(error).split())[:most]


def near(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean X or Y?" for the known names nearest to one, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
