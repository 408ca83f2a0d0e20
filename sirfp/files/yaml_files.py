"""Reads YAML files from untrusted sources: plain values only, with limits on size and depth."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError, one_line

# Limits chosen far above the content of configs, and small enough that a malicious file is refused within a moment.
LARGEST = 128 << 10
"""The largest file that is read, in bytes."""
ALIASES = 20
"""The largest number of aliases in a file. Nested aliases grow exponentially ("billion laughs")."""
VALUES = 20_000
"""The largest number of values in a file; a value that aliases repeat is counted each time."""
DEEPEST = 40
"""The deepest nesting of lists and mappings that is read."""
FILES = 40
"""The largest number of files of one config: the file itself and its bases (`_BASE_`); a base named twice counts
twice."""
_WRONG = (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which creates only plain values; stops reading when a limit is exceeded."""

    aliases = values = deep = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.aliases += self.check_event(yaml.AliasEvent)
        self.values += 1
        self.deep += 1
        for count, most, what in (
            (self.aliases, ALIASES, "aliases"),
            (self.values, VALUES, "values"),
            (self.deep, DEEPEST, "nested blocks"),
        ):
            if count > most:
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(None, None, f"more than {most} {what}", mark)
        node = super().compose_node(parent, index)
        self.deep -= 1
        return node


def read_yaml(path: str | os.PathLike[str], what: str = "config file") -> tuple[Any, str]:
    """Reads a YAML file of plain values.

    Args:
        path: the file.
        what: the kind of file, for messages.

    Returns:
        The file's content and its text.

    Raises:
        InputError: the file is missing, too large, not valid YAML, or holds more than plain values.
    """
    path = Path(path)
    try:
        if not path.is_file():  # also refuses devices, whose reading might never end
            raise InputError(f"{what} {path}: no such file")
        if path.stat().st_size > LARGEST:
            raise InputError(f"{what} {path} has {path.stat().st_size} bytes; at most {LARGEST} are read")
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{what} {path}: {error.strerror or error}") from None
    except _WRONG as error:
        said = one_line(error, 300) or type(error).__name__
        plain = "; only plain values are allowed, no Python objects" if "tag:yaml.org,2002:python" in said else ""
        raise InputError(f"{what} {path} is no valid YAML: {said}{plain}") from None
    _check_extent(content, f"{what} {path}")
    return content, text


def read_config_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a config and its bases (`_BASE_`), in place of Detectron2, which could run code in them.

    Returns:
        The keys of the bases, overridden by those of the file, without `_BASE_`.

    Raises:
        InputError: a file cannot be read (see `read_yaml`), does not hold KEY: VALUE lines, or has a base that is not a
            local file; there are too many files; or a block of keys overrides a value of a base that is no such block.
    """
    return _with_bases(Path(path), Path(path), itertools.count(1))


def _with_bases(file: Path, first: Path, number: Iterator[int]) -> dict[str, Any]:
    if next(number) > FILES:
        raise InputError(f"config file {first} has more than {FILES} base files (_BASE_); do they name each other?")
    content, _ = read_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f"config file {file} must hold KEY: VALUE lines, got {content!r:.80}")
    merged: dict[str, Any] = {}
    for base in _bases(content, file):
        _merge(_with_bases(base, first, number), merged, file)
    content.pop("_BASE_", None)
    _merge(content, merged, file)
    return merged


def _merge(over: dict[Any, Any], into: dict[Any, Any], file: Path) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise InputError(f"config file {file}: {key} holds keys, but is {into[key]!r:.80} in its base (_BASE_)")
            _merge(value, into[key], file)
        else:
            into[key] = value


def _bases(content: dict[Any, Any], path: Path) -> Iterator[Path]:
    given = content.get("_BASE_", [])
    for name in given if isinstance(given, list) else [given]:
        if not isinstance(name, str) or "://" in name:
            raise InputError(f"config file {path}: _BASE_ must name local files, got {name!r:.80}")
        yield path.parent / Path(name).expanduser()


def _check_extent(content: Any, name: str) -> None:
    """Raises InputError if a file's content has too many values or is nested too deeply."""
    left, count = [(content, 0)], 0
    while left:
        value, deep = left.pop()
        count += 1
        if count > VALUES or deep > DEEPEST:
            raise InputError(f"{name} holds more than {VALUES} values, or more than {DEEPEST} nested blocks")
        if isinstance(value, dict):
            left.extend((part, deep + 1) for pair in value.items() for part in pair)
        elif isinstance(value, (list, tuple, set)):
            left.extend((part, deep + 1) for part in value)
