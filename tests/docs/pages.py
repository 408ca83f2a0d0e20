"""The pages of documentation, their blocks of code and the commands in these."""

from __future__ import annotations

import functools
import re
import shlex
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from scripts import ROOT

LANGUAGES = {"python", "sh", "yaml", "text"}
"""What a fenced block may say it is; an indented one is of shell commands."""
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "projects/*/README.md")
    for path in ROOT.glob(pattern)
)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: its path below the checkout.
        line: of its first line of code, from 1.
        language: one of `LANGUAGES`, "" where the page does not say.
        text: the code.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str:
        """The file that a reader shall put it into, by a comment in its first line: `# name.py`."""
        named = re.match(r"# ([\w./-]+\.(?:py|yaml))$", self.text.partition("\n")[0])
        return named[1] if named else ""


@functools.cache
def parsed(page: str) -> list[Token]:
    """A page of documentation; read once for all tests."""
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[Block]:
    """A page's blocks of code, in order."""
    found = []
    for token in parsed(page):
        if token.type == "fence":
            found.append(Block(page, token.map[0] + 2, token.info.strip(), token.content))
        elif token.type == "code_block":
            found.append(Block(page, token.map[0] + 1, "sh", token.content))
    return found


def links(page: str) -> Iterator[str]:
    """The targets of a page's links and pictures."""
    for token in parsed(page):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def inline_code(page: str) -> Iterator[str]:
    """The code spans in a page's text."""
    for token in parsed(page):
        yield from (child.content for child in token.children or () if child.type == "code_inline")


def commands(text: str, variables: Mapping[str, str]) -> Iterator[list[str]]:
    """The words of each command of a shell block, `$name` filled in from assignments before it.

    Args:
        text: the block; commands end with a line or at `&&`, loops are not understood.
        variables: names that are known already.
    """
    known = dict(variables)
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(string.Template(word).safe_substitute(known))
                continue
            while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                known[name] = value
            if words:
                yield words
            words = []


def script(words: list[str]) -> Path | None:
    """The Python script that a command runs; None if it runs something else."""
    return Path(words[1]) if words[0] == "python" and len(words) > 1 and words[1].endswith(".py") else None
